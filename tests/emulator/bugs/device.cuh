// SPDX-License-Identifier: MIT
// Helpers of the kernels.
#pragma once

#include "bugs.h"

#include <cuda_runtime.h>

extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

namespace bugs {

template <typename T>
__device__ T* dynamic_shared() {
  return reinterpret_cast<T*>(dynamic_shared_memory);
}

inline __device__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);  // [shuffle]
  return value;
}

// The sum over the block, for every thread.
inline __device__ float block_sum(float value, Bug bug = Bug::none) {
  __shared__ float partial[kThreads / 32];
  __shared__ float stage[kThreads];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  stage[threadIdx.x] = value;  // [stage]
  if (bug == Bug::shuffle_as_barrier)
    value = __shfl_sync(0xffffffffu, value, lane);
  else if (bug != Bug::lockstep)
    __syncwarp();
  value = (value + stage[threadIdx.x ^ 1]) / 2;  // [neighbour]
  value = warp_sum(value);
  if (bug != Bug::no_barrier_before_reuse) __syncthreads();                                                   // [reuse]
  if (lane == 0) partial[warp + (bug == Bug::static_shared_index ? 32 : 0)] = value;                          // [write]
  if (bug != Bug::no_barrier_after_write && (bug != Bug::barrier_in_one_warp || warp == 0)) __syncthreads();  // [half]
  if (bug == Bug::lanes_leave_shuffle && lane >= 2) return 0;
  return warp_sum(lane < kThreads / 32 ? partial[lane] : 0);  // [read]
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, int cluster, size_t dynamic_bytes,
                   Arguments... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = dynamic_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace bugs
