// SPDX-License-Identifier: MIT
// L1. Sums and visits (maps.cuh) of a tile of rows, N elements at a time, by all threads of a block. A thread has a
// column of N channels and every groups-th row of it, the same ones in loads, sums and visits: what it has loaded
// itself it may read without a barrier.
#pragma once
#include "../plan/plan.h"
#include "planes.cuh"

namespace eca {

template <class A, int N>
struct Rows {
  // Calls f(std::integral_constant<int, rows>, s, groups, c) for the vectors of this thread: `rows` of them, kBatch and
  // finally 1, at rows s, s + groups, ... and channels c .. c + N.
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

  // Calls out(c, totals) with the sums over the tile's positions of channel tile.c0 + c. A tile has no more columns
  // than there are threads. shared: A[kSums][parts_of_rows][channels]. Ends with a barrier.
  template <class Index, class Term, class Out>
  __device__ static void sums(const TileOf<Index>& tile, Index, int, const Term& term, A* shared, const Out& out) {
    constexpr int K = Term::kSums;
    const int channels = static_cast<int>(tile.c1 - tile.c0), columns = channels / N;
    A total[K][N] = {}, centre[N];
#pragma unroll
    for (int k = 0; k < N; ++k) centre[k] = A(term.centre(tile.c0 + static_cast<Index>(threadIdx.x % columns) * N + k));
    walk<loads_of_sum<Term>()>(tile, [&](auto rows, Index s, int groups, Index c) {
      constexpr int kRows = decltype(rows)::value;
      typename Term::Loaded loaded[kRows];
#pragma unroll
      for (int b = 0; b < kRows; ++b) loaded[b] = term.early(s + b * groups, c);
      term.arrive();
#pragma unroll
      for (int b = 0; b < kRows; ++b) {
        A terms[K][N];
        term.late(s + b * groups, c, loaded[b]);
        term.get(loaded[b], centre, terms);
#pragma unroll
        for (int q = 0; q < K; ++q) {
#pragma unroll
          for (int k = 0; k < N; ++k) total[q][k] += terms[q][k];
        }
      }
    });
    // First over the lanes of a warp that have the same column.
    const bool share = columns_share_warps(columns);
    const int column = threadIdx.x % columns, parts = parts_of_rows(blockDim.x, columns);
    const int part = share ? threadIdx.x / kWarp : threadIdx.x / columns;
    if (share) {
      for (int offset = kWarp / 2; offset >= columns; offset /= 2) {
#pragma unroll
        for (int q = 0; q < K; ++q) {
#pragma unroll
          for (int k = 0; k < N; ++k) total[q][k] += __shfl_xor_sync(0xffffffffu, total[q][k], offset);
        }
      }
    }
    if (share ? threadIdx.x % kWarp < columns : part < parts) {
#pragma unroll
      for (int q = 0; q < K; ++q) {
#pragma unroll
        for (int k = 0; k < N; ++k) shared[((q * parts + part) * N + k) * columns + column] = total[q][k];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
      A sum[K];
#pragma unroll
      for (int q = 0; q < K; ++q) {
        const A* const of_sum = shared + q * parts * channels;
        sum[q] = of_sum[i];
        for (int p = 1; p < parts; ++p) sum[q] += of_sum[p * channels + i];
      }
      out(i % columns * N + i / columns, sum);
    }
    __syncthreads();
  }

  // Visits every element of the tile once; numbers[c] is what the visit needs of channel c.
  template <class Index, class Numbers, class Body>
  __device__ static void each(const TileOf<Index>& tile, Index, Numbers numbers, const Body& body) {
    const int columns = static_cast<int>(tile.c1 - tile.c0) / N;
    const Index first = tile.c0 + static_cast<Index>(threadIdx.x % columns) * N;
    Number<Numbers> of_column[N];
#pragma unroll
    for (int k = 0; k < N; ++k) of_column[k] = numbers[first + k];
    walk<loads_of_visit<Body>()>(tile, [&](auto rows, Index s, int groups, Index c) {
      constexpr int kRows = decltype(rows)::value;
      typename Body::Loaded loaded[kRows];
#pragma unroll
      for (int b = 0; b < kRows; ++b) loaded[b] = body.load(s + b * groups, c);
#pragma unroll
      for (int b = 0; b < kRows; ++b) body.finish(s + b * groups, c, loaded[b], of_column);
    });
  }
};

}  // namespace eca
