// SPDX-License-Identifier: MIT
// L1. Sums over the positions of a tile, per channel, by all threads of a block. A term offers
//   Loaded load(run, i)    N elements of a run from i on, where a run is a plane (kPlanes) or a row (kRows)
//   add(run, i, loaded, A total[N])
// Loads are issued a batch at a time before any of them is used.
#pragma once
#include "../tiling.h"
#include "block.cuh"

namespace eca {

// How many loads to issue before the first is used: as many as 64 registers per thread allow.
template <class Loaded>
__host__ __device__ constexpr int batch_of() {
  return sizeof(Loaded) > 16 ? 2 : sizeof(Loaded) > 2 ? 4 : 8;
}

template <class A, Layout L, int N>
struct Reduce;

// Along each plane: `lanes` threads share it.
template <class A, int N>
struct Reduce<A, Layout::kPlanes, N> {
  // shared: max(1, lanes / 32) numbers per plane. out[c - tile.c0] = the sum of channel c.
  template <class Term>
  __device__ static void sums(const Tile& tile, int lanes, const Term& term, A* shared, A* out) {
    const int planes = static_cast<int>(tile.c1 - tile.c0), vectors = static_cast<int>(tile.s1 - tile.s0) / N;
    const int lane = threadIdx.x % lanes, groups = blockDim.x / lanes;
    const int in_warp = lanes < kWarp ? lanes : kWarp, parts = lanes / in_warp;
    for (int first = 0; first < planes; first += groups) {  // the same number of rounds for all threads
      const int plane = first + threadIdx.x / lanes;
      A total = 0;
      if (plane < planes) total = along(term, tile.c0 + plane, tile.s0, vectors, lane, lanes);
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

 private:
  template <class Term>
  __device__ static A along(const Term& term, int64_t run, int64_t s0, int vectors, int lane, int lanes) {
    constexpr int kBatch = batch_of<typename Term::Loaded>(), kTotals = N >= 4 ? 1 : 2;
    A total[kTotals][N] = {};  // enough of them that additions don't wait for each other
    int v = lane;
    for (; v + (kBatch - 1) * lanes < vectors; v += kBatch * lanes) {
      typename Term::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = term.load(run, s0 + int64_t{v + b * lanes} * N);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) term.add(run, s0 + int64_t{v + b * lanes} * N, loaded[b], total[b % kTotals]);
    }
    for (; v < vectors; v += lanes) {
      const int64_t i = s0 + int64_t{v} * N;
      term.add(run, i, term.load(run, i), total[0]);
    }
    A sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
      for (int t = 0; t < kTotals; ++t) sum += total[t][i];
    }
    return sum;
  }
};

// Down the rows: a thread adds up N columns of every groups-th row.
template <class A, int N>
struct Reduce<A, Layout::kRows, N> {
  // shared: threads * N numbers; a tile has at most that many channels.
  template <class Term>
  __device__ static void sums(const Tile& tile, int, const Term& term, A* shared, A* out) {
    const int channels = static_cast<int>(tile.c1 - tile.c0), columns = channels / N, groups = blockDim.x / columns;
    const int column = threadIdx.x % columns, group = threadIdx.x / columns;
    if (group < groups) {
      constexpr int kBatch = batch_of<typename Term::Loaded>();
      A total[N] = {};
      const int64_t c = tile.c0 + column * N;
      int64_t s = tile.s0 + group;
      for (; s + (kBatch - 1) * groups < tile.s1; s += kBatch * groups) {
        typename Term::Loaded loaded[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) loaded[b] = term.load(s + b * groups, c);
#pragma unroll
        for (int b = 0; b < kBatch; ++b) term.add(s + b * groups, c, loaded[b], total);
      }
      for (; s < tile.s1; s += groups) term.add(s, c, term.load(s, c), total);
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
