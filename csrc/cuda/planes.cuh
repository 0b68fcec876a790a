// SPDX-License-Identifier: MIT
// L1. Sums and visits (maps.cuh) of a tile of planes, N elements at a time, by all threads of a block.
//
// Either each plane is a whole number of vectors, with any stride between planes. Or (kStraddle) planes are contiguous,
// and a vector may hold the end of one and the beginning of the next, as with 7 x 7 positions: a plane's sum reads the
// vectors that it shares with its neighbours, and a visit takes the vectors that begin in the tile.
#pragma once
#include <type_traits>
#include <utility>

#include "../gates/math.h"
#include "../tiling.h"
#include "block.cuh"

namespace eca {

// Loads of a thread in flight, as registers allow; those from shared memory need fewer.
template <class Term>
__host__ __device__ constexpr int loads_of_sum() {
  constexpr int kBytes = sizeof(typename Term::Loaded);
  return kBytes > 32 || (kBytes > 16 && !Term::kFar) ? 2 : 4;
}
template <class Body>
__host__ __device__ constexpr int loads_of_visit() {
  return Body::kFar && sizeof(typename Body::Loaded) <= 16 ? 4 : 2;
}

// A position in planes of `length`, advanced by a fixed distance without a division.
template <class Index>
struct Place {
  Index plane, at;

  __device__ static Place of(Index distance, Index length) { return {distance / length, distance % length}; }
  __device__ __forceinline__ void advance(const Place& by, Index length) {
    plane += by.plane;
    at += by.at;
    if (at >= length) {
      at -= length;
      ++plane;
    }
  }
};

template <class Numbers>
using Number = std::decay_t<decltype(std::declval<Numbers>()[0])>;

template <class A, int N, bool kStraddle>
struct Planes {
  // Calls out(c, totals) with the sums over the tile's positions of channel tile.c0 + c. `lanes` threads add up a
  // plane, whose full length is `length`. shared: A[kSums][planes][lanes / 32] if lanes > 32. Ends with a barrier.
  template <class Index, class Term, class Out>
  __device__ static void sums(const TileOf<Index>& tile, Index length, int lanes, const Term& term, A* shared,
                              const Out& out) {
    constexpr int K = Term::kSums;
    const int planes = static_cast<int>(tile.c1 - tile.c0), shift = __ffs(lanes) - 1;  // a power of two
    const int groups = blockDim.x >> shift, group = threadIdx.x >> shift, lane = threadIdx.x & (lanes - 1);
    const int in_warp = lanes < kWarp ? lanes : kWarp, parts = lanes / in_warp;
    for (int first = 0; first < planes; first += groups) {  // as often for all threads: warps reduce
      const int plane = first + group;
      A total[K] = {};
      if (plane < planes) along(tile, tile.c0 + plane, length, lane, lanes, term, total);
      sums_of_lanes(total, in_warp);
      if (plane < planes && (lane & (in_warp - 1)) == 0) {
        if (parts == 1) out(plane, total);
        for (int q = 0; q < K && parts > 1; ++q) shared[(q * planes + plane) * parts + lane / in_warp] = total[q];
      }
    }
    __syncthreads();
    if (parts == 1) return;
    for (int plane = threadIdx.x; plane < planes; plane += blockDim.x) {
      A total[K] = {};
      for (int q = 0; q < K; ++q)
        for (int part = 0; part < parts; ++part) total[q] += shared[(q * planes + plane) * parts + part];
      out(plane, total);
    }
    __syncthreads();
  }

  // Visits every element of the tile once; numbers[c] is what the visit needs of channel c.
  template <class Index, class Numbers, class Body>
  __device__ static void each(const TileOf<Index>& tile, Index length, Numbers numbers, const Body& body) {
    constexpr bool kWide = sizeof(Index) > 4;            // a Place takes twice the registers
    constexpr bool kFew = kStraddle || Body::kMaps > 1;  // few registers are left
    constexpr int kBatch = kWide && kFew ? 1 : kStraddle || kWide ? 2 : loads_of_visit<Body>();
    const Index c0 = kStraddle ? 0 : tile.c0, s0 = kStraddle ? 0 : tile.s0;  // Place is relative to these
    const Index width = kStraddle ? length : tile.s1 - tile.s0;
    const Index begin = kStraddle ? (tile.c0 * length + tile.s0 + N - 1) / N * N : 0;
    const Index end = kStraddle ? (tile.c1 - 1) * length + tile.s1 : (tile.c1 - tile.c0) * width;
    const Index step = static_cast<Index>(blockDim.x) * N;
    Index i = begin + static_cast<Index>(threadIdx.x) * N;
    if (i >= end) return;
    const Place<Index> distance = Place<Index>::of(step, width);
    Place<Index> place = Place<Index>::of(i, width);
    const auto load = [&](const Place<Index>& at) { return body.load(c0 + at.plane, s0 + at.at); };
    const auto finish = [&](const Place<Index>& at, const typename Body::Loaded& loaded) {
      Number<Numbers> of_elements[N];
      numbers_at(c0 + at.plane, at.at, length, numbers, of_elements);
      body.finish(c0 + at.plane, s0 + at.at, loaded, of_elements);
    };
    for (; i + (kBatch - 1) * step < end; i += kBatch * step) {
      typename Body::Loaded loaded[kBatch];
      Place<Index> places[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        places[b] = place;
        loaded[b] = load(place);
        place.advance(distance, width);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) finish(places[b], loaded[b]);
    }
#pragma unroll 1
    for (; i < end; i += step) {
      finish(place, load(place));
      place.advance(distance, width);
    }
  }

 private:
  // The share of thread `lane` of `lanes` in the sums of plane c.
  template <class Index, class Term>
  __device__ __forceinline__ static void along(const TileOf<Index>& tile, Index c, Index length, int lane, int lanes,
                                               const Term& term, A (&totals)[Term::kSums]) {
    constexpr int kBatch = loads_of_sum<Term>(), K = Term::kSums;
    A total[K][N] = {}, centre[N];
    fill(centre, static_cast<A>(term.centre(c)));
    const auto add = [&](Index i, const typename Term::Loaded& loaded) {
      A terms[K][N];
      term.get(loaded, centre, terms);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const Index at = i + k - tile.s0;
        if (kStraddle && (at < 0 || at >= tile.s1 - tile.s0)) continue;  // the neighbours'
        for (int q = 0; q < K; ++q) total[q][k] += terms[q][k];
      }
    };
    const Index step = static_cast<Index>(lanes) * N;
    Index i = tile.s0 + static_cast<Index>(lane) * N;
    if constexpr (kStraddle) i -= (c * length + tile.s0) % N;
    for (; i + (kBatch - 1) * step < tile.s1; i += kBatch * step) {
      typename Term::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = term.early(c, i + b * step);
      term.arrive();
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        term.late(c, i + b * step, loaded[b]);
        add(i + b * step, loaded[b]);
      }
    }
    for (; i < tile.s1; i += step) {
      typename Term::Loaded loaded = term.early(c, i);
      term.arrive();
      term.late(c, i, loaded);
      add(i, loaded);
    }
    for (int q = 0; q < K; ++q) {
#pragma unroll
      for (int k = 0; k < N; ++k) totals[q] += total[q][k];
    }
  }

  // out[k]: the number of the channel of element k of the vector that begins at `at` in plane c.
  template <class Index, class Numbers>
  __device__ __forceinline__ static void numbers_at(Index c, Index at, Index length, Numbers numbers,
                                                    Number<Numbers> (&out)[N]) {
    if (!kStraddle || length >= N) {
      const Index left = kStraddle ? length - at : N;
      const Number<Numbers> here = numbers[c], next = left < N ? numbers[c + 1] : here;
#pragma unroll
      for (int k = 0; k < N; ++k) out[k] = select(k < left, here, next);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        out[k] = numbers[c];
        if (++at == length) {
          at = 0;
          ++c;
        }
      }
    }
  }
};

}  // namespace eca
