// SPDX-License-Identifier: MIT
// L1. Sums over the positions of a tile, per channel, by all threads of a block. A term offers
//   Loaded fetch(run, i)      N elements from element i of a run on, of maps in global memory; a run is a plane
//   (kPlanes)
//                             or a row (kRows)
//   await(run, i)             until everything up to there has arrived of the map that is on its way
//   load(run, i, loaded)      the same elements of that one
//   get(loaded, A terms[N])   what is to be added up
// Loads are issued a batch at a time before any of them is used.
#pragma once
#include "../tiling.h"
#include "block.cuh"

namespace eca {

// How many loads to issue before the first is used: as many as 64 registers per thread allow.
template <class Loaded>
__host__ __device__ constexpr int batch_of() {
  return sizeof(Loaded) > 32 ? 2 : sizeof(Loaded) > 2 ? 4 : 8;
}

template <class Term, class A, int N>
__device__ __forceinline__ void add(const Term& term, const typename Term::Loaded& loaded, A (&total)[N]) {
  A terms[N];
  term.get(loaded, terms);
#pragma unroll
  for (int k = 0; k < N; ++k) total[k] += terms[k];
}

template <class Term, class Index>
__device__ __forceinline__ typename Term::Loaded load_one(const Term& term, Index run, Index i) {
  typename Term::Loaded loaded = term.fetch(run, i);
  term.await(run, i);
  term.load(run, i, loaded);
  return loaded;
}

template <class A, int N>
__device__ __forceinline__ A sum_of(const A (&numbers)[N]) {
  A sum = numbers[0];
#pragma unroll
  for (int k = 1; k < N; ++k) sum += numbers[k];
  return sum;
}

// out[plane] = the sum over the `lanes` threads that share it of along(plane, lane); lanes is a power of two.
// shared: max(1, lanes / 32) numbers per plane.
template <class A, class Along>
__device__ void sums_of_planes(int planes, int lanes, A* shared, A* out, Along along) {
  const int lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
  const int in_warp = lanes < kWarp ? lanes : kWarp, parts = lanes / in_warp;
  for (int first = 0; first < planes; first += groups) {  // the same number of rounds for all threads
    const int plane = first + threadIdx.x / lanes;
    A total = plane < planes ? along(plane, lane) : A(0);
    total = sum_of_lanes(total, in_warp);
    if (plane < planes && lane % in_warp == 0) shared[plane * parts + lane / in_warp] = total;
  }
  __syncthreads();
  for (int plane = threadIdx.x; plane < planes; plane += blockDim.x) {
    A total = shared[plane * parts];
    for (int part = 1; part < parts; ++part) total += shared[plane * parts + part];
    out[plane] = total;
  }
}

template <class A, Layout L, int N>
struct Reduce;

// Along each plane, which is a number of whole vectors: `lanes` threads share it.
template <class A, int N>
struct Reduce<A, Layout::kPlanes, N> {
  // shared: see sums_of_planes. out[c - tile.c0] = the sum of channel c.
  template <class Index, class Term>
  __device__ static void sums(const TileOf<Index>& tile, int lanes, const Term& term, A* shared, A* out) {
    const int vectors = static_cast<int>(tile.s1 - tile.s0) / N;
    sums_of_planes(static_cast<int>(tile.c1 - tile.c0), lanes, shared, out, [&](int plane, int lane) {
      constexpr int kBatch = batch_of<typename Term::Loaded>(), kTotals = N >= 4 ? 1 : 2;
      const Index run = tile.c0 + plane;
      const auto at = [&](int v) { return tile.s0 + static_cast<Index>(v) * N; };
      A total[kTotals][N] = {};  // enough of them that additions don't wait for each other
      int v = lane;
      for (; v + (kBatch - 1) * lanes < vectors; v += kBatch * lanes) {
        typename Term::Loaded loaded[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) loaded[b] = term.fetch(run, at(v + b * lanes));
        term.await(run, at(v + (kBatch - 1) * lanes));
#pragma unroll
        for (int b = 0; b < kBatch; ++b) term.load(run, at(v + b * lanes), loaded[b]);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) add(term, loaded[b], total[b % kTotals]);
      }
      for (; v < vectors; v += lanes) {
        add(term, load_one(term, run, at(v)), total[0]);
      }
      A sum = sum_of(total[0]);
      if constexpr (kTotals == 2) sum += sum_of(total[1]);
      return sum;
    });
  }
};

// Down the rows: a thread adds up N columns of every groups-th row.
template <class A, int N>
struct Reduce<A, Layout::kRows, N> {
  // shared: threads * N numbers; a tile has at most that many channels.
  template <class Index, class Term>
  __device__ static void sums(const TileOf<Index>& tile, int, const Term& term, A* shared, A* out) {
    const int channels = static_cast<int>(tile.c1 - tile.c0), columns = channels / N, groups = blockDim.x / columns;
    const int column = threadIdx.x % columns, group = threadIdx.x / columns;
    if (group < groups) {
      constexpr int kBatch = batch_of<typename Term::Loaded>();
      A total[N] = {};
      const Index c = tile.c0 + column * N;
      Index s = tile.s0 + group;
      for (; s + (kBatch - 1) * groups < tile.s1; s += kBatch * groups) {
        typename Term::Loaded loaded[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) loaded[b] = term.fetch(s + b * groups, c);
        term.await(s + (kBatch - 1) * groups, c);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) term.load(s + b * groups, c, loaded[b]);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) add(term, loaded[b], total);
      }
      for (; s < tile.s1; s += groups) add(term, load_one(term, s, c), total);
#pragma unroll
      for (int i = 0; i < N; ++i) shared[group * channels + column * N + i] = total[i];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
      A total = shared[c];
      for (int g = 1; g < groups; ++g) total += shared[g * channels + c];
      out[c] = total;
    }
  }
};

}  // namespace eca
