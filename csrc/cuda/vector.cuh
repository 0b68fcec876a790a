// SPDX-License-Identifier: MIT
// L1. Vectorised loads and stores, widened to the accumulator's type and rounded to nearest on the way back; reads and
// writes of parameters, each of which has its own dtype.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "../gates/norm.h"
#include "kernel_args.h"
#include "ptx.cuh"

namespace eca {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float* to) { *to = value; }
__device__ __forceinline__ void narrow(double value, double* to) { *to = value; }
__device__ __forceinline__ void narrow(float value, __half* to) { *to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }

// The type that one instruction moves.
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

// N consecutive elements as they lie in memory.
template <class T, int N>
struct Vector {
  using Raw = typename RawOf<N * sizeof(T)>::type;
  using A = Accumulator<T>;
  Raw raw;

  __device__ __forceinline__ static Vector load(const T* p) { return {*reinterpret_cast<const Raw*>(p)}; }
  // From global memory that this kernel does not read again.
  __device__ __forceinline__ static Vector load_once(const T* p) {
    if constexpr (sizeof(Raw) == 16) return {ptx::load_once(reinterpret_cast<const uint4*>(p))};
    return {__ldcs(reinterpret_cast<const Raw*>(p))};
  }

  __device__ __forceinline__ void get(A (&out)[N]) const {
    T values[N];
    memcpy(values, &raw, sizeof raw);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = widen(values[i]);
  }

  __device__ __forceinline__ static void store(T* p, const A (&values)[N]) {
    const Raw raw = packed(values);
    if constexpr (sizeof(Raw) == 16) {  // as an integer: nvcc splits most unrolled stores of a uint4 into four
      unsigned __int128 whole;
      memcpy(&whole, &raw, sizeof whole);
      *reinterpret_cast<unsigned __int128*>(p) = whole;
    } else {
      *reinterpret_cast<Raw*>(p) = raw;
    }
  }
  // To global memory that is not read soon: evicted from L2 first.
  __device__ __forceinline__ static void store_once(T* p, const A (&values)[N]) {
    __stcs(reinterpret_cast<Raw*>(p), packed(values));
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

// Number [r, c] of a parameter, in the type of the accumulator.
template <class A>
__device__ __forceinline__ A read(const ParameterView& view, int64_t r, int64_t c) {
  const int64_t i = r * view.row + c * view.step + view.taps / 2;
  if constexpr (std::is_same_v<A, double>) {
    return static_cast<const double*>(view.data)[i];
  } else {
    if (view.dtype == DType::kFloat) return static_cast<const float*>(view.data)[i];
    if (view.dtype == DType::kHalf) return widen(static_cast<const __half*>(view.data)[i]);
    return widen(static_cast<const __nv_bfloat16*>(view.data)[i]);
  }
}

template <class A>
__device__ __forceinline__ A read(const ParameterView& view, int64_t c) {
  return read<A>(view, 0, c);
}

template <class A>
__device__ ChannelNorm<A> channel_norm(const NormParameters& p, int64_t c) {
  return ChannelNorm<A>::of(p.weight.data ? read<A>(p.weight, c) : A(1), p.bias.data ? read<A>(p.bias, c) : A(0),
                            read<A>(p.mean, c), read<A>(p.var, c), static_cast<A>(p.eps));
}

// Writes number [r, c] of a parameter's gradient and the zeros around it.
template <class A>
__device__ __forceinline__ void write(const ParameterView& to, int64_t r, int64_t c, A value) {
  const auto narrowed = [&](auto* data) {
    for (int64_t j = 0; j < to.taps; ++j) narrow(j == to.taps / 2 ? value : A(0), data + r * to.row + c * to.step + j);
  };
  if (to.dtype == DType::kHalf) return narrowed(static_cast<__half*>(to.data));
  if (to.dtype == DType::kBFloat16) return narrowed(static_cast<__nv_bfloat16*>(to.data));
  narrowed(static_cast<A*>(to.data));
}
template <class A>
__device__ __forceinline__ void write(const ParameterView& to, int64_t c, A value) {
  write(to, 0, c, value);
}

}  // namespace eca
