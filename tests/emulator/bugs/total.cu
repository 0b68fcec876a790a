// SPDX-License-Identifier: MIT
// The last block to finish adds up the sums of all blocks.
#include "device.cuh"

#include <cuda/atomic>

namespace bugs {

inline __device__ bool is_last(unsigned* counter, bool fences, Bug bug) {
  const unsigned before_last = gridDim.x - 1;
  if (fences) {
    if (bug != Bug::no_fence_before_count) __threadfence();
    const bool last = atomicAdd(counter, 1u) == before_last;
    if (bug != Bug::no_fence_after_count) __threadfence();
    return last;
  }
  cuda::atomic_ref<unsigned, cuda::thread_scope_device> count(*counter);
  const auto order = bug == Bug::relaxed_count ? cuda::memory_order_relaxed : cuda::memory_order_acq_rel;
  return count.fetch_add(1, order) == before_last;
}

__global__ void __launch_bounds__(kThreads)
    total_kernel(const float* __restrict__ x, float* __restrict__ total, float* __restrict__ partial, unsigned* counter,
                 int size, bool fences, Bug bug) {
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) sum += x[i];
  sum = block_sum(sum);
  __shared__ bool last;
  if (bug == Bug::all_blocks_write && threadIdx.x == 0) *total = sum;  // [harmless]
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;  // [partial]
    last = is_last(counter, fences, bug);
  }
  __syncthreads();
  if (!last) return;
  float all = 0;
  for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x) all += partial[i];  // [gather]
  all = block_sum(all);
  if (threadIdx.x == 0) *total = all;
}

cudaError_t total(const float* x, float* total, float* partial, unsigned* counter, int size, int blocks, bool fences,
                  Bug bug) {
  return launch(total_kernel, blocks, 1, 0, x, total, partial, counter, size, fences, bug);
}

}  // namespace bugs
