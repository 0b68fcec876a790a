// SPDX-License-Identifier: MIT
// L1. Visits every element of a tile once, N at a time, each with the numbers of its channel. A body offers
//   Loaded load(run, i)                        as in reduce.cuh
//   finish(run, i, loaded, gate[N], shift[N])
// The numbers are arrays of A, or Zeros.
#pragma once
#include "reduce.cuh"

namespace eca {

// Vectors whose loads are issued together: fewer than in a sum, as what becomes of them takes registers, too.
template <class Loaded>
__host__ __device__ constexpr int steps_of() {
  return sizeof(Loaded) > 16 ? 2 : 4;
}

template <class A>
struct Zeros {
  template <class Index>
  __device__ A operator[](Index) const {
    return A(0);
  }
};

// A place in planes of `length` that is moved on by the same distance again and again: divided once, then added.
struct Place {
  int plane, at;

  __device__ static Place of(int distance, int length) { return {distance / length, distance % length}; }
  __device__ __forceinline__ void advance(const Place& by, int length) {
    plane += by.plane;
    at += by.at;
    if (at >= length) {
      at -= length;
      ++plane;
    }
  }
};

template <class A, Layout L, int N>
struct Walk;

template <class A, int N>
struct Walk<A, Layout::kPlanes, N> {
  template <class Index, class Gate, class Shift, class Body>
  __device__ static void each(const TileOf<Index>& tile, Gate gate, Shift shift, const Body& body) {
    const int planes = static_cast<int>(tile.c1 - tile.c0), vectors = static_cast<int>(tile.s1 - tile.s0) / N;
    constexpr int kBatch = steps_of<typename Body::Loaded>();
    if (vectors == 0) return;
    const int step = blockDim.x, all = planes * vectors;
    const Place distance = Place::of(step, vectors);
    Place place = Place::of(threadIdx.x, vectors);
    const auto load = [&](const Place& at) { return body.load(tile.c0 + at.plane, tile.s0 + at.at * N); };
    const auto finish = [&](const Place& at, const typename Body::Loaded& loaded) {
      const Index c = tile.c0 + at.plane;
      A gates[N], shifts[N];
      const A g = gate[c], h = shift[c];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        gates[i] = g;
        shifts[i] = h;
      }
      body.finish(c, tile.s0 + at.at * N, loaded, gates, shifts);
    };
    int v = threadIdx.x;
    for (; v + (kBatch - 1) * step < all; v += kBatch * step) {
      typename Body::Loaded loaded[kBatch];
      Place places[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        places[b] = place;
        loaded[b] = load(place);
        place.advance(distance, vectors);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) finish(places[b], loaded[b]);
    }
#pragma unroll 1
    for (; v < all; v += step) {
      finish(place, load(place));
      place.advance(distance, vectors);
    }
  }
};

template <class A, int N>
struct Walk<A, Layout::kRows, N> {
  template <class Index, class Gate, class Shift, class Body>
  __device__ static void each(const TileOf<Index>& tile, Gate gate, Shift shift, const Body& body) {
    const int columns = static_cast<int>(tile.c1 - tile.c0) / N, groups = blockDim.x / columns;
    const int group = threadIdx.x / columns;
    constexpr int kBatch = steps_of<typename Body::Loaded>();
    if (group >= groups) return;
    const Index c = tile.c0 + threadIdx.x % columns * N;
    A gates[N], shifts[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      gates[i] = gate[c + i];
      shifts[i] = shift[c + i];
    }
    Index s = tile.s0 + group;
    for (; s + (kBatch - 1) * groups < tile.s1; s += kBatch * groups) {
      typename Body::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = body.load(s + b * groups, c);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) body.finish(s + b * groups, c, loaded[b], gates, shifts);
    }
#pragma unroll 1
    for (; s < tile.s1; s += groups) body.finish(s, c, body.load(s, c), gates, shifts);
  }
};

}  // namespace eca
