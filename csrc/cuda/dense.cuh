// SPDX-License-Identifier: MIT
// L1. Visits (walk.cuh) and sums (reduce.cuh) of planes that follow one another: they are one run of planes * S
// elements, `run` is always 0, and i counts all of them. Vectors of N elements may straddle planes, as they do those of
// 7 x 7; S >= N, so that a vector meets two planes at most.
#pragma once
#include "walk.cuh"

namespace eca {

template <class A, int N, bool kStraddle>
struct Dense {
  template <class Gate, class Shift, class Body>
  __device__ static void each(int planes, int length, Gate gate, Shift shift, const Body& body) {
    // A few vectors at a time: most of what they need is in shared memory, and registers are scarce.
    constexpr int kBatch = kStraddle ? 1 : 2;
    const int step = blockDim.x * N, all = planes * length;
    const Place distance = Place::of(step, length);
    Place place = Place::of(threadIdx.x * N, length);
    const auto finish = [&](int i, const typename Body::Loaded& loaded) {
      const int here = place.plane, left = kStraddle ? length - place.at : N, next = left < N ? here + 1 : here;
      const A g[2] = {gate[here], gate[next]}, h[2] = {shift[here], shift[next]};
      A gates[N], shifts[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        gates[k] = k < left ? g[0] : g[1];
        shifts[k] = k < left ? h[0] : h[1];
      }
      body.finish(0, i, loaded, gates, shifts);
      place.advance(distance, length);
    };
    int i = threadIdx.x * N;
    for (; i + (kBatch - 1) * step < all; i += kBatch * step) {
      typename Body::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = body.load(0, i + b * step);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) finish(i + b * step, loaded[b]);
    }
    if constexpr (kBatch > 1) {
#pragma unroll 1
      for (; i < all; i += step) finish(i, body.load(0, i));
    }
  }

  // Of straddling planes. lanes 0: each thread adds up groups of planes by itself, `group` planes each, that fill whole
  // vectors. All threads meet the ends of planes at the same time; it takes as many groups as there are threads to be
  // worth while. Otherwise `lanes` threads share a plane, and the first and the last vector with its neighbours.
  template <class Term>
  __device__ static void sums(int planes, int length, int lanes, int group, const Term& term, A* shared, A* out) {
    if (lanes > 0) {
      sums_of_planes(planes, lanes, shared, out,
                     [&](int plane, int lane) { return sum_of_plane(term, plane * length, length, lane, lanes); });
      return;
    }
    for (int plane = threadIdx.x * group; plane < planes; plane += blockDim.x * group)
      sum_group(term, plane * length, length, group, out + plane);
  }

 private:
  template <class Term>
  __device__ static A sum_of_plane(const Term& term, int begin, int length, int lane, int lanes) {
    A total[N] = {};
    for (int i = begin / N * N + lane * N; i < begin + length; i += lanes * N) {
      A terms[N];
      term.get(load_one(term, 0, i), terms);
#pragma unroll
      for (int k = 0; k < N; ++k)  // elements before the plane and behind it are its neighbours'
        if (static_cast<unsigned>(i - begin + k) < static_cast<unsigned>(length)) total[k] += terms[k];
    }
    return sum_of(total);
  }

  // out[j] = the sum of plane j of the group that begins at element `begin`.
  template <class Term>
  __device__ static void sum_group(const Term& term, int begin, int length, int group, A* out) {
    constexpr int kBatch = batch_of<typename Term::Loaded>();
    const int end = begin + group * length;
    int left = length;  // of the plane
    A total[N] = {};
    const auto take = [&](const typename Term::Loaded& loaded) {
      if (left > N) {
        add(term, loaded, total);
        left -= N;
        return;
      }
      A terms[N];
      term.get(loaded, terms);
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (k < left) total[k] += terms[k];
      *out++ = sum_of(total);
#pragma unroll
      for (int k = 0; k < N; ++k) total[k] = k < left ? A(0) : terms[k];
      left += length - N;
    };
    int i = begin;
    for (; i + (kBatch - 1) * N < end; i += kBatch * N) {
      typename Term::Loaded loaded[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) loaded[b] = term.fetch(0, i + b * N);
      term.await(0, i + (kBatch - 1) * N);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) term.load(0, i + b * N, loaded[b]);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) take(loaded[b]);
    }
#pragma unroll 1
    for (; i < end; i += N) take(load_one(term, 0, i));
  }
};

}  // namespace eca
