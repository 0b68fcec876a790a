// SPDX-License-Identifier: MIT
// L1. The executor of the gates on a GPU (gates/gate.h says what it owes them): one block, a channel for each thread.
// Its memory may be shared or global: every step begins and ends with a barrier, so either is seen by all threads.
#pragma once
#include "../gates/gate.h"
#include "block.cuh"

namespace eca {

template <class A>
struct Channels {
  using Value = A;

  int64_t count;
  A* warps;  // shared memory for one number per warp
  A* padded[2];
  A* scratch;

  // memory: 2 * (count + 2 * half) numbers, then the gate's scratch
  __device__ Channels(int64_t count_, int64_t half, A* warps_, A* memory)
      : count(count_),
        warps(warps_),
        padded{memory, memory + count_ + 2 * half},
        scratch(memory + 2 * (count_ + 2 * half)) {}

  template <class Body>
  __device__ void times(int64_t numbers, Body body) const {
    __syncthreads();
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < numbers; j += blockDim.x) body(j);
    __syncthreads();
  }
  template <class Body>
  __device__ void each(Body body) const {
    times(count, body);
  }

  __device__ A load(const A* p, int64_t c) const { return p[c]; }
  __device__ A weight(const A* p, int64_t j, int64_t c) const { return p[j * count + c]; }
  __device__ void store(A* p, int64_t c, A value) const { p[c] = value; }
  __device__ A window(const A* p, int64_t c, int64_t j) const { return p[c + j]; }

  template <class Term>
  __device__ A sum(Term term) const {
    __syncthreads();
    A total = 0;
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < count; c += blockDim.x) total += term(c);
    return sum_of_block(total, warps);
  }

  // A warp for each sum.
  template <class Term>
  __device__ void sums(int64_t rows, A* out, Term term) const {
    __syncthreads();
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int64_t j = threadIdx.x / kWarp; j < rows; j += blockDim.x / kWarp) {
      A total = 0;
#pragma unroll 2
      for (int64_t c = lane; c < count; c += kWarp) total += term(j, c);
      total = sum_of_lanes(total, kWarp);
      if (lane == 0) out[j] = total;
    }
    __syncthreads();
  }

  template <class Number>
  __device__ void keep(int64_t numbers, A* p, Number number) const {
    times(numbers, [&](int64_t j) { p[j] = number(j); });
  }
  template <class Term>
  __device__ void keep_sums(int64_t rows, A* p, Term term) const {
    sums(rows, p, term);
  }

  __device__ const A* pad(int slot, const A* values, int64_t half, bool circular) const {
    A* const out = padded[slot];
    times(count + 2 * half, [&](int64_t i) {
      const int64_t c = padded_channel(i - half, count, circular);
      out[i] = c < 0 ? A(0) : values[c];
    });
    return out;
  }
};

}  // namespace eca
