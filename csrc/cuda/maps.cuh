// SPDX-License-Identifier: MIT
// L1. The four things that are done to feature maps, N elements at a time: two sums for reduce.cuh (pool, dot) and two
// ways to apply a gate for walk.cuh (rescale, gradient). cpu/maps.h is their twin.
#pragma once
#include "../problem.h"
#include "vector.cuh"

namespace eca {

// One sample of a feature map; absent where data is null.
template <class T>
struct Map {
  T* data;
  int64_t stride;  // between runs

  __device__ Map() : data(nullptr), stride(0) {}
  __device__ Map(const Batch& batch, int64_t n)
      : data(batch.data ? static_cast<T*>(batch.data) + n * batch.sample_stride : nullptr), stride(batch.run_stride) {}
  __device__ __forceinline__ T* at(int64_t run, int64_t i) const { return data + run * stride + i; }

  // N elements that will be read again soon, or that will not.
  template <int N>
  __device__ __forceinline__ Vector<T, N> load(int64_t run, int64_t i) const {
    return Vector<T, N>::load(at(run, i));
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load_last(int64_t run, int64_t i) const {
    return Vector<T, N>::load_last(at(run, i));
  }
};

// Runs `first` and following of a map, one after another in shared memory.
template <class T>
struct Slab {
  T* data;
  int stride;
  int64_t first;

  __device__ __forceinline__ T* at(int64_t run, int64_t i) const {
    return data + static_cast<int>(run - first) * stride + static_cast<int>(i);
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load(int64_t run, int64_t i) const {
    return Vector<T, N>::load(at(run, i));
  }
  template <int N>
  __device__ __forceinline__ Vector<T, N> load_last(int64_t run, int64_t i) const {
    return load<N>(run, i);
  }
};

// The sum of x.
template <class T, int N, class X = Map<T>>
struct Pool {
  using A = Accumulator<T>;
  using Loaded = Vector<T, N>;
  X x;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const { return x.template load<N>(run, i); }
  __device__ __forceinline__ void add(int64_t, int64_t, const Loaded& loaded, A (&total)[N]) const {
    A values[N];
    loaded.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) total[k] += values[k];
  }
};

// The sum of grad_y * x, over positions where y > 0 if there is a y. What else becomes of grad_y there:
//   kReadAgain   nothing: Gradient reads y, too
//   kMask        it is in shared memory, is set to zero where y <= 0, and is the residual's gradient already
enum class Masking { kReadAgain, kMask };

template <class T, int N, class G = Map<T>, Masking M = Masking::kReadAgain>
struct Dot {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, x, y;
  };
  G grad_y;
  Map<T> x, y, grad_residual;  // grad_residual: for kMask

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.grad_y = grad_y.template load<N>(run, i);
    loaded.x = x.template load_last<N>(run, i);
    if (y.data) loaded.y = y.template load<N>(run, i);
    return loaded;
  }
  __device__ __forceinline__ void add(int64_t run, int64_t i, const Loaded& loaded, A (&total)[N]) const {
    A grad[N], values[N], outputs[N];
    loaded.grad_y.get(grad);
    loaded.x.get(values);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (y.data && outputs[k] <= A(0)) grad[k] = A(0);
      total[k] += grad[k] * values[k];
    }
    if constexpr (M == Masking::kMask) {
      if (y.data) Vector<T, N>::put(grad_y.at(run, i), grad);
      if (grad_residual.data) Vector<T, N>::store(grad_residual.at(run, i), grad);
    }
  }
};

// y = relu(x * gate + residual)
template <class T, int N, class X = Map<T>>
struct Rescale {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> x, residual;
  };
  X x;
  Map<T> residual, y;
  bool relu;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.x = x.template load_last<N>(run, i);
    if (residual.data) loaded.residual = residual.template load_last<N>(run, i);
    return loaded;
  }
  __device__ __forceinline__ void finish(int64_t run, int64_t i, const Loaded& loaded, const A (&gate)[N],
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
    Vector<T, N>::store(y.at(run, i), values);
  }
};

// grad_residual = [y > 0] grad_y, grad_x = grad_residual * gate + shift
template <class T, int N, class G = Map<T>>
struct Gradient {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, y;
  };
  G grad_y;
  Map<T> y, grad_x, grad_residual;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.grad_y = grad_y.template load_last<N>(run, i);
    if (y.data) loaded.y = y.template load_last<N>(run, i);
    return loaded;
  }
  __device__ __forceinline__ void finish(int64_t run, int64_t i, const Loaded& loaded, const A (&gate)[N],
                                         const A (&shift)[N]) const {
    A grad[N], outputs[N];
    loaded.grad_y.get(grad);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (y.data && outputs[k] <= A(0)) grad[k] = A(0);
    if (grad_residual.data) Vector<T, N>::store(grad_residual.at(run, i), grad);
#pragma unroll
    for (int k = 0; k < N; ++k) grad[k] = grad[k] * gate[k] + shift[k];
    Vector<T, N>::store(grad_x.at(run, i), grad);
  }
};

}  // namespace eca
