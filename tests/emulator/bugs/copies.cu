// SPDX-License-Identifier: MIT
// A block processes tiles, two of them in flight, by asynchronous copies that each thread issues and awaits itself.
#include "device.cuh"

#include <cuda_pipeline_primitives.h>

namespace bugs {

__global__ void __launch_bounds__(kThreads)
    copies_kernel(const float* __restrict__ x, float* __restrict__ y, int tiles, Bug bug) {
  constexpr int kTile = 4 * kThreads;
  __shared__ __align__(16) float stages[2][kTile];
  const auto load = [&](int t) {
    const int at = 4 * threadIdx.x, bytes = bug == Bug::copy_of_12_bytes ? 12 : 16;
    if (t < tiles) __pipeline_memcpy_async(&stages[t % 2][at], x + t * kTile + at, bytes);  // [copy]
    if (bug != Bug::copy_not_committed) __pipeline_commit();
  };
  load(0);
  load(1);
  for (int t = 0; t < tiles; ++t) {
    __pipeline_wait_prior(bug == Bug::copy_not_awaited ? 2 : 1);  // [oldest]
    if (bug != Bug::copies_of_others) __syncthreads();
    for (int i = threadIdx.x; i < kTile; i += kThreads) y[t * kTile + i] = 2 * stages[t % 2][i];  // [taken]
    if (bug != Bug::copied_over) __syncthreads();
    load(t + 2);
  }
}

cudaError_t copies(const float* x, float* y, int tiles, Bug bug) {
  return launch(copies_kernel, 1, 1, 0, x, y, tiles, bug);
}

}  // namespace bugs
