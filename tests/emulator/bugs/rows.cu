// SPDX-License-Identifier: MIT
// A block sums a row: barriers, shuffles, static shared memory, global memory.
#include "device.cuh"

namespace bugs {

__global__ void __launch_bounds__(kThreads)
    rows_kernel(const float* __restrict__ x, float* __restrict__ y, int columns, Bug bug) {
  const float* const row = x + size_t(blockIdx.x) * columns;
  float sum = 0;
  if (bug == Bug::misaligned_vector) {
    const auto vectors = reinterpret_cast<const float4*>(row + 1);
    for (int i = threadIdx.x; i < columns / 4 - 1; i += blockDim.x) {
      const float4 v = vectors[i];  // [vector]
      sum += v.x + v.y + v.z + v.w;
    }
  } else {
    const int end = bug == Bug::read_past_row ? columns + 1 : columns;
    for (int i = threadIdx.x; i < end; i += blockDim.x) sum += row[i];  // [row]
  }
  if (bug == Bug::stack_overrun) {
    float local[4];
    for (int i = 0; i <= columns / 200; ++i) local[i] = sum;  // [local]
    sum = local[threadIdx.x % 4];
  }
  __shared__ float bias[kThreads];
  if (bug != Bug::uninitialized_shared) bias[threadIdx.x] = 0;
  sum = block_sum(sum + bias[threadIdx.x], bug);
  sum = block_sum(sum / blockDim.x, bug);  // the scratch is used again
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

cudaError_t rows(const float* x, float* y, int rows, int columns, Bug bug) {
  return launch(rows_kernel, rows, 1, 0, x, y, columns, bug);
}

}  // namespace bugs
