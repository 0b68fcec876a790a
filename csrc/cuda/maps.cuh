// SPDX-License-Identifier: MIT
// L1. What is done to feature maps, N elements at a time: two sums for reduce.cuh (pool, dot) and three visits for
// walk.cuh (mask, rescale, gradient). cpu/maps.h is their twin. They are given the maps as Runs, or as something that
// has the same members: the slab of a resident kernel (resident.cuh), or Absent.
#pragma once
#include <type_traits>

#include "../problem.h"
#include "vector.cuh"

namespace eca {

// Planes or rows in global memory; not there where data is null. Index: int where that is known to be enough.
template <class T, class Index>
struct Runs {
  static constexpr bool kArrives = false;  // it is all there
  T* data;
  Index stride;  // between runs

  __device__ __forceinline__ T* at(Index run, Index i) const { return data + run * stride + i; }

  // N elements that will be read again soon, or that will not.
  template <int N>
  __device__ __forceinline__ Vector<T, N> load(Index run, Index i) const {
    return Vector<T, N>::load(at(run, i));
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load_last(Index run, Index i) const {
    return Vector<T, N>::load_last(at(run, i));
  }
  // So that what will be read again soon stays in the L2 cache.
  template <int N>
  __device__ __forceinline__ void store(Index run, Index i, const Accumulator<T> (&values)[N]) const {
    Vector<T, N>::store(at(run, i), values);
  }
  // Until everything up to there has arrived: it always was there.
  __device__ __forceinline__ void await(Index, Index) const {}
};

// One sample of a map, with strides of any size.
template <class T>
struct Map : Runs<T, int64_t> {
  __device__ Map(const Batch& batch, int64_t n)
      : Runs<T, int64_t>{batch.data ? static_cast<T*>(batch.data) + n * batch.sample_stride : nullptr,
                         batch.run_stride} {}
};

// A map that is known not to be there.
template <class T>
struct Absent {
  static constexpr T* data = nullptr;
  template <int N, class Index>
  __device__ Vector<T, N> load_last(Index, Index) const {
    return {};
  }
  template <class Index, int N>
  __device__ void store(Index, Index, const Accumulator<T> (&)[N]) const {}
};

// The sum of x.
template <class T, int N, class X>
struct Pool {
  using A = Accumulator<T>;
  using Loaded = Vector<T, N>;
  X x;

  template <class Index>
  __device__ __forceinline__ Loaded fetch(Index, Index) const {
    return {};
  }
  template <class Index>
  __device__ __forceinline__ void await(Index run, Index i) const {
    x.await(run, i);
  }
  template <class Index>
  __device__ __forceinline__ void load(Index run, Index i, Loaded& loaded) const {
    loaded = x.template load<N>(run, i);
  }
  __device__ __forceinline__ void get(const Loaded& loaded, A (&terms)[N]) const { loaded.get(terms); }
};

// The sum of grad_y * x; kMasked: over positions where y > 0, if there is a y.
template <class T, int N, class G, class X, bool kMasked>
struct Dot {
  using A = Accumulator<T>;
  struct Pair {
    Vector<T, N> grad_y, x;
  };
  struct Triple : Pair {
    Vector<T, N> y;
  };
  using Loaded = std::conditional_t<kMasked, Triple, Pair>;
  G grad_y;
  X x;
  std::conditional_t<kMasked, X, Absent<T>> y;

  template <class Index>
  __device__ __forceinline__ Loaded fetch(Index run, Index i) const {
    Loaded loaded{};
    if constexpr (!X::kArrives) loaded.x = x.template load_last<N>(run, i);
    if constexpr (kMasked)
      if (y.data) loaded.y = y.template load<N>(run, i);
    return loaded;
  }
  template <class Index>
  __device__ __forceinline__ void await(Index run, Index i) const {
    grad_y.await(run, i);
  }
  template <class Index>
  __device__ __forceinline__ void load(Index run, Index i, Loaded& loaded) const {
    loaded.grad_y = grad_y.template load<N>(run, i);
    if constexpr (X::kArrives) loaded.x = x.template load<N>(run, i);  // together with grad_y
  }
  __device__ __forceinline__ void get(const Loaded& loaded, A (&terms)[N]) const {
    A values[N];
    loaded.grad_y.get(terms);
    loaded.x.get(values);
    if constexpr (kMasked) {
      A outputs[N];
      loaded.y.get(outputs);
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (y.data && outputs[k] <= A(0)) terms[k] = A(0);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) terms[k] *= values[k];
  }
};

// In place: grad_y = grad_residual = [y > 0] grad_y
template <class T, int N, class G, class M>
struct Mask {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, y;
  };
  G grad_y;
  M y, grad_residual;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    grad_y.await(run, i);
    return {grad_y.template load<N>(run, i), y.template load_last<N>(run, i)};
  }
  template <class Index>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const A (&)[N],
                                         const A (&)[N]) const {
    A grad[N], outputs[N];
    loaded.grad_y.get(grad);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (outputs[k] <= A(0)) grad[k] = A(0);
    Vector<T, N>::put(grad_y.at(run, i), grad);
    if (grad_residual.data) grad_residual.store(run, i, grad);
  }
};

// y = x * gate
template <class T, int N, class X, class M>
struct Rescale {
  using A = Accumulator<T>;
  using Loaded = Vector<T, N>;
  X x;
  M y;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    return x.template load_last<N>(run, i);
  }
  template <class Index>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const A (&gate)[N],
                                         const A (&)[N]) const {
    A values[N];
    loaded.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) values[k] *= gate[k];
    y.store(run, i, values);
  }
};

// y = relu(x * gate + residual), with a residual or without
template <class T, int N, class X, class M>
struct RescaleRelu {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> x, residual;
  };
  X x;
  M residual, y;
  bool relu;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    Loaded loaded{};
    loaded.x = x.template load_last<N>(run, i);
    if (residual.data) loaded.residual = residual.template load_last<N>(run, i);
    return loaded;
  }
  template <class Index>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const A (&gate)[N],
                                         const A (&)[N]) const {
    A values[N], added[N];
    loaded.x.get(values);
    loaded.residual.get(added);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values[k] *= gate[k];
      if (residual.data) values[k] += added[k];
      if (relu) values[k] = values[k] <= A(0) ? A(0) : values[k];
    }
    y.store(run, i, values);
  }
};

// grad_residual = [y > 0] grad_y, grad_x = grad_residual * gate + shift
template <class T, int N, class G, class Y, class M>
struct Gradient {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, y;
  };
  G grad_y;
  Y y;
  M grad_x;
  Y grad_residual;

  template <class Index>
  __device__ __forceinline__ Loaded load(Index run, Index i) const {
    Loaded loaded{};
    loaded.grad_y = grad_y.template load_last<N>(run, i);
    if (y.data) loaded.y = y.template load_last<N>(run, i);
    return loaded;
  }
  template <class Index>
  __device__ __forceinline__ void finish(Index run, Index i, const Loaded& loaded, const A (&gate)[N],
                                         const A (&shift)[N]) const {
    A grad[N], outputs[N];
    loaded.grad_y.get(grad);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (y.data && outputs[k] <= A(0)) grad[k] = A(0);
    if (grad_residual.data) grad_residual.store(run, i, grad);
#pragma unroll
    for (int k = 0; k < N; ++k) grad[k] = grad[k] * gate[k] + shift[k];
    grad_x.store(run, i, grad);
  }
};

}  // namespace eca
