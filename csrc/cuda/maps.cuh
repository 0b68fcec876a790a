// SPDX-License-Identifier: MIT
// L1. The elementwise work on feature maps, N elements at a time: reductions (here "sums") and visits, which planes.cuh
// and rows.cuh apply to a tile. A run is a plane or a row. cpu/maps.h does the same on a CPU. A sum has
//   kSums                            the number of sums it computes in one read
//   Loaded early(run, i)             loads elements i .. i + N of a run, from the maps that need no waiting
//   arrive()                         waits for the other maps
//   late(run, i, loaded)             loads the same elements from those
//   A centre(c)                      what the elements of channel c are measured from, if anything
//   get(loaded, centre[N], A terms[kSums][N])    the terms to add up
// a visit has
//   Loaded load(run, i)
//   finish(run, i, loaded, number[N])            number[k]: what the visit needs of the channel of element k
// and both have kFar: whether they load from global memory.
#pragma once
#include <type_traits>

#include "vector.cuh"

namespace eca {

// One sample of a feature map [C, S], absent if data is null. Index: int where all offsets fit one. kGlobal: in global
// memory; else it may be in shared memory, too.
template <class T, class Index_, bool kGlobal>
struct Runs {
  using Element = T;
  using Index = Index_;
  using Map = Runs;
  template <int N>
  using Loaded = Vector<T, N>;
  static constexpr bool kFar = kGlobal;
  T* data;
  Index stride;  // between runs

  __device__ __forceinline__ T* at(Index run, Index i) const { return data + run * stride + i; }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load(Index run, Index i) const {
    return Vector<T, N>::load(at(run, i));
  }
  // For what this kernel does not read again: other data stays in the caches.
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

// The signs of one sample of y (problem.h).
template <class T, class Index>
struct SignBytes {
  static constexpr int kPerByte = 16 / sizeof(T);
  uint8_t* data;  // uint8[sign_bytes]; null where they are not needed
  Index length;   // of a run

  // Bit k is that of element i + k of a run.
  template <int N>
  __device__ __forceinline__ unsigned load(Index run, Index i) const {
    const auto element = static_cast<std::make_unsigned_t<Index>>(run * length + i);
    const unsigned byte = __ldg(data + element / kPerByte);
    return N == kPerByte ? byte : byte >> (element % kPerByte);
  }
  __device__ __forceinline__ void store(Index run, Index i, unsigned bits) const {
    const auto element = static_cast<std::make_unsigned_t<Index>>(run * length + i);
    __stcs(data + element / kPerByte, static_cast<uint8_t>(bits));
  }
};

// The gradient behind a ReLU: reads as zero where the sign of y is not set.
template <class M>
struct Masked {
  using Element = typename M::Element;
  using Index = typename M::Index;
  using Map = M;
  static constexpr bool kFar = M::kFar;
  M map;
  SignBytes<Element, Index> signs;

  template <int N>
  struct Loaded {
    Vector<Element, N> vector;
    unsigned bits;

    __device__ __forceinline__ void get(Accumulator<Element> (&out)[N]) const {
      vector.get(out);
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = bits >> k & 1 ? out[k] : Accumulator<Element>(0);
    }
  };
  template <int N>
  __device__ __forceinline__ Loaded<N> load(Index run, Index i) const {
    return {map.template load<N>(run, i), signs.template load<N>(run, i)};
  }
  template <int N>
  __device__ __forceinline__ Loaded<N> load_once(Index run, Index i) const {
    return {map.template load_once<N>(run, i), signs.template load<N>(run, i)};
  }
};

// Bit k: whether values[k], as it is stored, is above zero or NaN.
template <class T, int N>
__device__ __forceinline__ unsigned above_zero(const Accumulator<T> (&values)[N]) {
  Accumulator<T> stored[N];
  Vector<T, N>{Vector<T, N>::packed(values)}.get(stored);
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < N; ++k) bits |= (stored[k] <= 0 ? 0u : 1u) << k;
  return bits;
}

// Stores y and, in vectors of 16 bytes, its signs. Single elements would share a byte: pack_signs.cu does those.
template <class M>
struct WithSigns {
  using Element = typename M::Element;
  using Index = typename M::Index;
  M map;
  SignBytes<Element, Index> signs;

  template <int N>
  __device__ __forceinline__ void store(Index run, Index i, const Accumulator<Element> (&values)[N]) const {
    map.store(run, i, values);
    if constexpr (N == SignBytes<Element, Index>::kPerByte) {
      if (signs.data) signs.store(run, i, above_zero<Element>(values));
    }
  }
};

struct NoCentre {
  template <class Index>
  __device__ __forceinline__ float centre(Index) const {
    return 0;
  }
};

// The sum of x.
template <int N, class X>
struct Pool : NoCentre {
  using A = Accumulator<typename X::Element>;
  using Loaded = Vector<typename X::Element, N>;
  static constexpr bool kFar = X::kFar;
  static constexpr int kSums = 1;
  X x;

  template <class Index>
  __device__ __forceinline__ Loaded early(Index run, Index i) const {
    return x.template load<N>(run, i);
  }
  __device__ __forceinline__ void arrive() const {}
  template <class Index>
  __device__ __forceinline__ void late(Index, Index, Loaded&) const {}
  __device__ __forceinline__ void get(const Loaded& loaded, const A (&)[N], A (&terms)[1][N]) const {
    loaded.get(terms[0]);
  }
};

struct NoWait {
  __device__ void operator()() const {}
};

// The sum of grad_y * x. wait() returns when grad_y has arrived.
template <int N, class G, class X, class Wait = NoWait>
struct Dot : NoCentre {
  using T = typename X::Element;
  using A = Accumulator<T>;
  static constexpr bool kFar = X::kFar;
  static constexpr int kSums = 1;
  struct Loaded {
    typename G::template Loaded<N> grad_y;
    Vector<T, N> x;
  };
  G grad_y;
  X x;
  Wait wait;

  __device__ __forceinline__ Dot(const G& grad_y_, const X& x_, const Wait& wait_ = {})
      : grad_y(grad_y_), x(x_), wait(wait_) {}
  template <class Index>
  __device__ __forceinline__ Loaded early(Index run, Index i) const {
    return {{}, x.template load_once<N>(run, i)};
  }
  __device__ __forceinline__ void arrive() const { wait(); }
  template <class Index>
  __device__ __forceinline__ void late(Index run, Index i, Loaded& loaded) const {
    loaded.grad_y = grad_y.template load<N>(run, i);
  }
  __device__ __forceinline__ void get(const Loaded& loaded, const A (&)[N], A (&terms)[1][N]) const {
    A values[N];
    loaded.grad_y.get(terms[0]);
    loaded.x.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) terms[0][k] *= values[k];  // also where grad_y is masked: 0 * Inf is NaN
  }
};

// --- Visits

// numbers[c] of visits that need nothing of a channel.
struct Nothing {
  __device__ Nothing operator[](int64_t) const { return {}; }
};
__device__ __forceinline__ Nothing select(bool, Nothing, Nothing) { return {}; }

// x * scale + shift
template <class A>
struct Affine {
  A scale, shift;
};
template <class A>
__device__ __forceinline__ Affine<A> select(bool condition, const Affine<A>& a, const Affine<A>& b) {
  return {condition ? a.scale : b.scale, condition ? a.shift : b.shift};
}

// scale and shift A[C], or something like it.
template <class A, class Shift = const A*>
struct Affines {
  const A* scale;
  Shift shift;
  template <class Index>
  __device__ __forceinline__ Affine<A> operator[](Index c) const {
    return {scale[c], shift[c]};
  }
};

template <class A>
__device__ __forceinline__ A scaled(A x, A scale) {
  return x * scale;
}
template <class A>
__device__ __forceinline__ A scaled(A x, const Affine<A>& of) {
  return x * of.scale + of.shift;
}

template <class V, bool kPresent>
struct Second {
  V second;
};
template <class V>
struct Second<V, false> {};

// out[kOut] = f(in[kIn], number) for each element of F::kIn maps. An absent second input reads as zeros, an absent
// second output is not written.
template <int N, class X, class Y, class F>
struct Visit {
  using M = typename X::Map;
  using T = typename X::Element;
  using A = Accumulator<T>;
  static constexpr bool kFar = X::kFar;
  static constexpr int kMaps = F::kIn;
  struct Loaded : Second<Vector<T, N>, F::kIn == 2> {
    typename X::template Loaded<N> in;
  };
  X in;
  Y out;
  F f;
  M other_in, other_out;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    Loaded loaded{};
    loaded.in = in.template load_once<N>(run, i);
    if constexpr (F::kIn == 2)
      if (other_in.data) loaded.second = other_in.template load_once<N>(run, i);
    return loaded;
  }
  template <class Index, class Number>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const Number (&numbers)[N]) const {
    A values[F::kIn][N], results[F::kOut][N];
    loaded.in.get(values[0]);
    if constexpr (F::kIn == 2) loaded.second.get(values[1]);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      A of_element[F::kIn], result[F::kOut];
#pragma unroll
      for (int m = 0; m < F::kIn; ++m) of_element[m] = values[m][k];
      f(of_element, numbers[k], result);
#pragma unroll
      for (int m = 0; m < F::kOut; ++m) results[m][k] = result[m];
    }
    out.store(run, i, results[0]);
    if constexpr (F::kOut == 2)
      if (other_out.data) other_out.store(run, i, results[1]);
  }
};

template <int N, class X, class Y, class F>
__device__ __forceinline__ Visit<N, X, Y, F> visit_of(const F& f, const X& in, const Y& out,
                                                      const typename X::Map& other_in = {},
                                                      const typename X::Map& other_out = {}) {
  return {in, out, f, other_in, other_out};
}

// y = x * gate or, with Affines, x * gate + shift
struct Rescale {
  static constexpr int kIn = 1, kOut = 1;
  template <class A, class Number>
  __device__ void operator()(const A (&x)[1], const Number& number, A (&y)[1]) const {
    y[0] = scaled(x[0], number);
  }
};

// y = relu(x * gate + shift + residual), each of relu, shift and residual being optional
struct RescaleRelu {
  static constexpr int kIn = 2, kOut = 1;
  bool residual, relu;
  template <class A, class Number>
  __device__ void operator()(const A (&in)[2], const Number& number, A (&y)[1]) const {
    y[0] = scaled(in[0], number);
    if (residual) y[0] += in[1];
    if (relu && y[0] <= A(0)) y[0] = A(0);
  }
};

// grad_y, masked: back to its slab, and to grad_residual
struct Keep {
  static constexpr int kIn = 1, kOut = 2;
  template <class A>
  __device__ void operator()(const A (&grad_y)[1], Nothing, A (&out)[2]) const {
    out[0] = out[1] = grad_y[0];
  }
};

// With grad_y masked: grad_x = grad_y * gate + shift, grad_residual = grad_y
struct RescaleMasked {
  static constexpr int kIn = 1, kOut = 2;
  template <class A, class Number>
  __device__ void operator()(const A (&grad_y)[1], const Number& number, A (&out)[2]) const {
    out[0] = scaled(grad_y[0], number);
    out[1] = grad_y[0];
  }
};

}  // namespace eca
