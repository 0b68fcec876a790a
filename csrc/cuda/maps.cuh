// SPDX-License-Identifier: MIT
// L1. What is done to feature maps, N elements at a time: two sums (pool, dot) and visits, element by
// element, which planes.cuh and rows.cuh lead over a tile. cpu/maps.h is their twin. A sum offers
//   Loaded early(run, i)             N elements from element i of a run on, of maps that are there; a run is a plane
//   arrive()                         or a row. Waits for the other maps
//   late(run, i, loaded)             the same elements of those
//   get(loaded, A terms[N])          what is to be added up
// and a visit
//   Loaded load(run, i)
//   finish(run, i, loaded, gate[N], shift[N])
#pragma once
#include "vector.cuh"

namespace eca {

// Planes or rows; not there where data is null. Index: int where that is known to be enough. kGlobal: in global memory;
// otherwise in either, the hardware finds out.
template <class T, class Index, bool kGlobal>
struct Runs {
  using Element = T;
  static constexpr bool kFar = kGlobal;
  T* data;
  Index stride;  // between runs

  __device__ __forceinline__ T* at(Index run, Index i) const { return data + run * stride + i; }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load(Index run, Index i) const {
    return Vector<T, N>::load(at(run, i));
  }
  // Of what will not be read again, so that what will be stays in the caches.
  template <int N>
  __device__ __forceinline__ Vector<T, N> load_once(Index run, Index i) const {
    if constexpr (kGlobal) return Vector<T, N>::load_once(at(run, i));
    return load<N>(run, i);
  }
  template <int N>
  __device__ __forceinline__ void store(Index run, Index i, const Accumulator<T> (&values)[N]) const {
    if constexpr (kGlobal) return Vector<T, N>::store_once(at(run, i), values);
    Vector<T, N>::store(at(run, i), values);
  }
};

// The sum of x.
template <int N, class X>
struct Pool {
  using A = Accumulator<typename X::Element>;
  using Loaded = Vector<typename X::Element, N>;
  static constexpr bool kFar = X::kFar;
  X x;

  template <class Index>
  __device__ __forceinline__ Loaded early(Index run, Index i) const {
    return x.template load<N>(run, i);
  }
  __device__ __forceinline__ void arrive() const {}
  template <class Index>
  __device__ __forceinline__ void late(Index, Index, Loaded&) const {}
  __device__ __forceinline__ void get(const Loaded& loaded, A (&terms)[N]) const { loaded.get(terms); }
};

struct AllThere {
  __device__ void operator()() const {}
};

// The sum of grad_y * x. `wait` until grad_y is there.
template <int N, class G, class X, class Wait = AllThere>
struct Dot {
  using T = typename X::Element;
  using A = Accumulator<T>;
  static constexpr bool kFar = X::kFar;
  struct Loaded {
    Vector<T, N> grad_y, x;
  };
  G grad_y;
  X x;
  Wait wait;

  template <class Index>
  __device__ __forceinline__ Loaded early(Index run, Index i) const {
    return {{}, x.template load_once<N>(run, i)};
  }
  __device__ __forceinline__ void arrive() const { wait(); }
  template <class Index>
  __device__ __forceinline__ void late(Index run, Index i, Loaded& loaded) const {
    loaded.grad_y = grad_y.template load<N>(run, i);
  }
  __device__ __forceinline__ void get(const Loaded& loaded, A (&terms)[N]) const {
    A values[N];
    loaded.grad_y.get(terms);
    loaded.x.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) terms[k] *= values[k];
  }
};

// The sum of grad_y * x over positions where y > 0.
template <int N, class M>
struct MaskedDot : Dot<N, M, M> {
  using Base = Dot<N, M, M>;
  using typename Base::A;
  struct Loaded : Base::Loaded {
    Vector<typename Base::T, N> y;
  };
  M y;

  template <class Index>
  __device__ __forceinline__ Loaded early(Index run, Index i) const {
    return {Base::early(run, i), y.template load<N>(run, i)};
  }
  template <class Index>
  __device__ __forceinline__ void late(Index run, Index i, Loaded& loaded) const {
    Base::late(run, i, loaded);
  }
  __device__ __forceinline__ void get(const Loaded& loaded, A (&terms)[N]) const {
    A values[N], outputs[N];
    loaded.grad_y.get(terms);
    loaded.x.get(values);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k) terms[k] = (outputs[k] <= A(0) ? A(0) : terms[k]) * values[k];  // 0 * Inf is NaN
  }
};

// For visits that have no use for gates or shifts.
struct Zeros {
  __device__ float operator[](int64_t) const { return 0; }
};

// Element by element, out[..] = f(in[..], gate, shift); maps that are absent are read as nothing, and not written.
template <int N, int kIn, int kOut, class M, class F>
struct Visit {
  using T = typename M::Element;
  using A = Accumulator<T>;
  static constexpr bool kFar = M::kFar;
  struct Loaded {
    Vector<T, N> in[kIn];
  };
  M in[kIn], out[kOut];
  F f;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    Loaded loaded{};
#pragma unroll
    for (int m = 0; m < kIn; ++m)
      if (m == 0 || in[m].data) loaded.in[m] = in[m].template load_once<N>(run, i);
    return loaded;
  }
  template <class Index>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const A (&gate)[N],
                                         const A (&shift)[N]) const {
    A values[kIn][N], results[kOut][N];
#pragma unroll
    for (int m = 0; m < kIn; ++m) loaded.in[m].get(values[m]);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      A of_element[kIn], result[kOut];
#pragma unroll
      for (int m = 0; m < kIn; ++m) of_element[m] = values[m][k];
      f(of_element, gate[k], shift[k], result);
#pragma unroll
      for (int m = 0; m < kOut; ++m) results[m][k] = result[m];
    }
#pragma unroll
    for (int m = 0; m < kOut; ++m)
      if (m == 0 || out[m].data) out[m].store(run, i, results[m]);
  }
};

// y = x * gate
struct Rescale {
  template <class A>
  __device__ void operator()(const A (&x)[1], A gate, A, A (&y)[1]) const {
    y[0] = x[0] * gate;
  }
};

// y = relu(x * gate + residual), with a residual or without
struct RescaleRelu {
  bool residual, relu;
  template <class A>
  __device__ void operator()(const A (&in)[2], A gate, A, A (&y)[1]) const {
    y[0] = in[0] * gate;
    if (residual) y[0] += in[1];
    if (relu && y[0] <= A(0)) y[0] = A(0);
  }
};

// grad_y, grad_residual = [y > 0] grad_y
struct Mask {
  template <class A>
  __device__ void operator()(const A (&in)[2], A, A, A (&out)[2]) const {
    out[0] = out[1] = in[1] <= A(0) ? A(0) : in[0];
  }
};

// grad_x = grad_y * gate + shift
struct Gradient {
  template <class A>
  __device__ void operator()(const A (&grad_y)[1], A gate, A shift, A (&grad_x)[1]) const {
    grad_x[0] = grad_y[0] * gate + shift;
  }
};

// grad_residual = [y > 0] grad_y, grad_x = grad_residual * gate + shift
struct MaskedGradient {
  template <class A>
  __device__ void operator()(const A (&in)[2], A gate, A shift, A (&out)[2]) const {
    out[1] = in[1] <= A(0) ? A(0) : in[0];
    out[0] = out[1] * gate + shift;
  }
};

}  // namespace eca
