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

  __device__ Map(const Batch& batch, int64_t n)
      : data(batch.data ? static_cast<T*>(batch.data) + n * batch.sample_stride : nullptr), stride(batch.run_stride) {}
  __device__ __forceinline__ T* at(int64_t run, int64_t i) const { return data + run * stride + i; }
};

// The sum of x.
template <class T, int N>
struct Pool {
  using A = Accumulator<T>;
  using Loaded = Vector<T, N>;
  Map<T> x;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const { return Loaded::load(x.at(run, i)); }
  __device__ __forceinline__ void add(const Loaded& loaded, A (&total)[N]) const {
    A values[N];
    loaded.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) total[k] += values[k];
  }
};

// The sum of grad_y * x, over positions where y > 0 if there is a y.
template <class T, int N>
struct Dot {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, x, y;
  };
  Map<T> grad_y, x, y;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.grad_y = Vector<T, N>::load(grad_y.at(run, i));
    loaded.x = Vector<T, N>::load_last(x.at(run, i));
    if (y.data) loaded.y = Vector<T, N>::load(y.at(run, i));
    return loaded;
  }
  __device__ __forceinline__ void add(const Loaded& loaded, A (&total)[N]) const {
    A grad[N], values[N], outputs[N];
    loaded.grad_y.get(grad);
    loaded.x.get(values);
    loaded.y.get(outputs);
#pragma unroll
    for (int k = 0; k < N; ++k) total[k] += (y.data && outputs[k] <= A(0) ? A(0) : grad[k]) * values[k];
  }
};

// y = relu(x * gate + residual)
template <class T, int N>
struct Rescale {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> x, residual;
  };
  Map<T> x, residual, y;
  bool relu;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.x = Vector<T, N>::load_last(x.at(run, i));
    if (residual.data) loaded.residual = Vector<T, N>::load_last(residual.at(run, i));
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
template <class T, int N>
struct Gradient {
  using A = Accumulator<T>;
  struct Loaded {
    Vector<T, N> grad_y, y;
  };
  Map<T> grad_y, y, grad_x, grad_residual;

  __device__ __forceinline__ Loaded load(int64_t run, int64_t i) const {
    Loaded loaded{};
    loaded.grad_y = Vector<T, N>::load_last(grad_y.at(run, i));
    if (y.data) loaded.y = Vector<T, N>::load_last(y.at(run, i));
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
