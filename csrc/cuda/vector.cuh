// SPDX-License-Identifier: MIT
// L1. Numbers on their way between memory and registers: N at a time, in one load or store, widened to the
// accumulator's type and narrowed again, rounded to nearest.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cuda/annotated_ptr>

#include <cstring>

#include "../options.h"

namespace eca {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// For the L2 cache. One that is the same for all threads costs no instruction: it is a part of the address.
using Hint = cuda::access_property;
__device__ __forceinline__ Hint hint_of(bool evict_first) {
  return evict_first ? Hint(Hint::streaming{}) : Hint(Hint::global{});
}

// What one instruction moves.
template <int Bytes>
struct RawOf;
template <>
struct RawOf<2> {
  using type = unsigned short;
};
template <>
struct RawOf<4> {
  using type = unsigned;
};
template <>
struct RawOf<8> {
  using type = uint2;
};
template <>
struct RawOf<16> {
  using type = uint4;
};

// N neighbours of type T as they lie in memory.
template <class T, int N>
struct Vector {
  using Raw = typename RawOf<N * sizeof(T)>::type;
  using A = Accumulator<T>;
  Raw raw;

  // Of memory that will be read again soon, and of memory that will not.
  __device__ __forceinline__ static Vector load(const T* p) { return {*reinterpret_cast<const Raw*>(p)}; }
  __device__ __forceinline__ static Vector load_last(const T* p) { return {__ldcs(reinterpret_cast<const Raw*>(p))}; }

  __device__ __forceinline__ void get(A (&out)[N]) const {
    T values[N];
    memcpy(values, &raw, sizeof raw);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = widen(values[i]);
  }

  // To global memory: so that the L2 cache gives it up first, and as a hint says.
  __device__ __forceinline__ static void store(T* p, const A (&values)[N]) {
    __stcs(reinterpret_cast<Raw*>(p), packed(values));
  }
  __device__ __forceinline__ static void store(T* p, const A (&values)[N], Hint hint) {
    *cuda::associate_access_property(reinterpret_cast<Raw*>(p), hint) = packed(values);
  }
  // To any memory.
  __device__ __forceinline__ static void put(T* p, const A (&values)[N]) {
    *reinterpret_cast<Raw*>(p) = packed(values);
  }

  __device__ __forceinline__ static Raw packed(const A (&values)[N]) {
    T narrowed[N];
#pragma unroll
    for (int i = 0; i < N; ++i) narrow(values[i], &narrowed[i]);
    Raw raw;
    memcpy(&raw, narrowed, sizeof raw);
    return raw;
  }
};

}  // namespace eca
