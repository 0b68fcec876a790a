// SPDX-License-Identifier: MIT
// L1. What the threads of a warp and of a block do together. Sums are added in an order that only the number of threads
// decides.
#pragma once
#include <cuda_runtime.h>

// The one declaration of dynamic shared memory: plan/plan.h's SharedLayout says what lies where.
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

namespace eca {

constexpr int kWarp = 32;

template <class T>
__device__ __forceinline__ T* shared_at(int64_t offset) {
  return reinterpret_cast<T*>(dynamic_shared_memory + offset);
}

// The sum over groups of `lanes` neighbouring lanes, a power of two up to 32; for every lane. The whole warp takes
// part.
template <class A>
__device__ __forceinline__ A sum_of_lanes(A value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

// The sum over the block, for every thread. `warps` is shared memory for one number per warp, free to use again after
// the next barrier.
template <class A>
__device__ __forceinline__ A sum_of_block(A value, A* warps) {
  value = sum_of_lanes(value, kWarp);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  A total = warps[0];
  for (unsigned w = 1; w < blockDim.x / kWarp; ++w) total += warps[w];
  return total;
}

}  // namespace eca
