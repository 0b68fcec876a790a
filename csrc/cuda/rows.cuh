// SPDX-License-Identifier: MIT
// L1. Sums and visits (maps.cuh) of a tile of rows, N elements at a time, by all threads of a block. A thread has one
// column of N channels and every groups-th row of it, in sums, visits and loads alike: what it has loaded by itself it
// need not share before it adds it up.
#pragma once
#include "../plan/plan.h"
#include "planes.cuh"

namespace eca {

template <class A, int N>
struct Rows {
  // Calls f(row, c) for the vectors of this thread, c being the first of N channels, kBatch rows at a time and then
  // one by one: f(std::integral_constant<int, rows>, first row, distance, c).
  template <int kBatch, class Index, class F>
  __device__ __forceinline__ static void walk(const TileOf<Index>& tile, F f) {
    const int columns = static_cast<int>(tile.c1 - tile.c0) / N, groups = blockDim.x / columns;
    const int group = threadIdx.x / columns;
    if (group >= groups) return;
    const Index c = tile.c0 + static_cast<Index>(threadIdx.x % columns) * N;
    Index s = tile.s0 + group;
    for (; s + (kBatch - 1) * groups < tile.s1; s += kBatch * groups)
      f(std::integral_constant<int, kBatch>{}, s, groups, c);
    if constexpr (kBatch > 1) {
#pragma unroll 1
      for (; s < tile.s1; s += groups) f(std::integral_constant<int, 1>{}, s, groups, c);
    }
  }

  // out[c] = the sum over the tile's positions of channel tile.c0 + c, divided by `divisor`. A tile has at most as many
  // columns as there are threads. shared: parts_of_rows numbers for each channel. Ends with a barrier.
  template <class Index, class Term>
  __device__ static void sums(const TileOf<Index>& tile, Index, int, const Term& term, A* shared, A* out, A divisor) {
    const int channels = static_cast<int>(tile.c1 - tile.c0), columns = channels / N;
    A total[N] = {};
    walk<loads_of_sum<Term>()>(tile, [&](auto rows, Index s, int groups, Index c) {
      constexpr int kRows = decltype(rows)::value;
      typename Term::Loaded loaded[kRows];
#pragma unroll
      for (int b = 0; b < kRows; ++b) loaded[b] = term.early(s + b * groups, c);
      term.arrive();
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        A terms[N];
        term.late(s + b * groups, c, loaded[b]);
        term.get(loaded[b], terms);
#pragma unroll
        for (int k = 0; k < N; ++k) total[k] += terms[k];
      }
    });
    // Lanes of a warp that have the same column first.
    const bool share = columns_share_warps(columns);
    const int column = threadIdx.x % columns, parts = parts_of_rows(blockDim.x, columns);
    const int part = share ? threadIdx.x / kWarp : threadIdx.x / columns;
    if (share) {
      for (int offset = kWarp / 2; offset >= columns; offset /= 2) {
#pragma unroll
        for (int k = 0; k < N; ++k) total[k] += __shfl_xor_sync(0xffffffffu, total[k], offset);
      }
    }
    if (share ? threadIdx.x % kWarp < columns : part < parts) {
#pragma unroll
      for (int k = 0; k < N; ++k) shared[(part * N + k) * columns + column] = total[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
      A sum = shared[i];
      for (int p = 1; p < parts; ++p) sum += shared[p * channels + i];
      out[i % columns * N + i / columns] = sum / divisor;
    }
    __syncthreads();
  }

  // Visits every element of the tile once; gate and shift are indexed by channel.
  template <class Index, class Gate, class Shift, class Body>
  __device__ static void each(const TileOf<Index>& tile, Index, Gate gate, Shift shift, const Body& body) {
    const int columns = static_cast<int>(tile.c1 - tile.c0) / N;
    const Index first = tile.c0 + static_cast<Index>(threadIdx.x % columns) * N;
    A gates[N], shifts[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      gates[k] = gate[first + k];
      shifts[k] = shift[first + k];
    }
    walk<loads_of_visit<Body>()>(tile, [&](auto rows, Index s, int groups, Index c) {
      constexpr int kRows = decltype(rows)::value;
      typename Body::Loaded loaded[kRows];
#pragma unroll
      for (int b = 0; b < kRows; ++b) loaded[b] = body.load(s + b * groups, c);
#pragma unroll
      for (int b = 0; b < kRows; ++b) body.finish(s + b * groups, c, loaded[b], gates, shifts);
    });
  }
};

}  // namespace eca
