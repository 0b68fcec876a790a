// SPDX-License-Identifier: MIT
// L1. What the threads of a warp do together, and the block's shared memory.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

// Dynamic shared memory; OnePassLayout and TwoPhaseLayout (plan/plan.h) say what lies where.
extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

namespace eca {

constexpr int kWarp = 32;

template <class T>
__device__ __forceinline__ T* shared_at(int64_t offset) {
  return reinterpret_cast<T*>(dynamic_shared_memory + offset);
}

// All-reduce over groups of `lanes` neighbouring lanes, a power of two up to 32. The whole warp takes part.
template <class A>
__device__ __forceinline__ A sum_of_lanes(A value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

template <class A, int K>
__device__ __forceinline__ void sums_of_lanes(A (&values)[K], int lanes) {
#pragma unroll
  for (int q = 0; q < K; ++q) values[q] = sum_of_lanes(values[q], lanes);
}

template <class A, int N>
__device__ __forceinline__ void fill(A (&to)[N], A value) {
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = value;
}

}  // namespace eca
