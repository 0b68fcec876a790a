// SPDX-License-Identifier: MIT
// L1. Visits every element of a tile once, N at a time, each with the numbers of its channel. A body offers
//   Loaded load(run, i)                        as in reduce.cuh
//   finish(run, i, loaded, gate[N], shift[N])
// `shift` may be null: then it is zero.
#pragma once
#include "reduce.cuh"

namespace eca {

template <class A, Layout L, int N>
struct Walk;

template <class A, int N>
struct Walk<A, Layout::kPlanes, N> {
  template <class Body>
  __device__ static void each(const Tile& tile, const A* gate, const A* shift, const Body& body) {
    const int planes = static_cast<int>(tile.c1 - tile.c0), vectors = static_cast<int>(tile.s1 - tile.s0) / N;
    constexpr int kBatch = batch_of<typename Body::Loaded>();
    if (vectors == 0) return;
    // Vector number threadIdx.x, then every blockDim.x-th, as plane and place in the plane: divided once, then added.
    const int planes_on = blockDim.x / vectors, vectors_on = blockDim.x % vectors;
    int plane = threadIdx.x / vectors, vector = threadIdx.x % vectors;
    while (plane < planes) {
      typename Body::Loaded loaded[kBatch];
      int runs[kBatch], at[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        runs[b] = plane;
        at[b] = vector * N;
        if (plane < planes) loaded[b] = body.load(tile.c0 + plane, tile.s0 + vector * N);
        plane += planes_on;
        vector += vectors_on;
        if (vector >= vectors) {
          vector -= vectors;
          ++plane;
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (runs[b] >= planes) break;
        const int64_t c = tile.c0 + runs[b];
        A gates[N], shifts[N];
        const A g = gate[c], h = shift ? shift[c] : A(0);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          gates[i] = g;
          shifts[i] = h;
        }
        body.finish(c, tile.s0 + at[b], loaded[b], gates, shifts);
      }
    }
  }
};

template <class A, int N>
struct Walk<A, Layout::kRows, N> {
  template <class Body>
  __device__ static void each(const Tile& tile, const A* gate, const A* shift, const Body& body) {
    const int columns = static_cast<int>(tile.c1 - tile.c0) / N, groups = blockDim.x / columns;
    const int group = threadIdx.x / columns;
    constexpr int kBatch = batch_of<typename Body::Loaded>();
    if (group >= groups) return;
    const int64_t c = tile.c0 + threadIdx.x % columns * N;
    A gates[N], shifts[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      gates[i] = gate[c + i];
      shifts[i] = shift ? shift[c + i] : A(0);
    }
    for (int64_t s = tile.s0 + group; s < tile.s1; s += kBatch * groups) {
      typename Body::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (s + b * groups < tile.s1) loaded[b] = body.load(s + b * groups, c);
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (s + b * groups < tile.s1) body.finish(s + b * groups, c, loaded[b], gates, shifts);
    }
  }
};

}  // namespace eca
