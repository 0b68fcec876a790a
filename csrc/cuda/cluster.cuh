// SPDX-License-Identifier: MIT
// L1. The executor of the gates (gates/gate.h) on the blocks of a cluster, which share out the channels of a sample and
// tell each other what they need by asynchronous pushes into shared memory: st.async, counted by an mbarrier.
//
// Every step that needs others is an exchange: it has a piece of memory and an mbarrier of its own, twice, for even and
// for odd samples. So a push for a sample may arrive while this block is still busy with the sample before. It can't be
// two ahead: whoever pushes for sample u + 2 has finished an exchange of sample u + 1 with this block, which this block
// entered after it was done with sample u.
#pragma once
#include <cooperative_groups.h>

#include <cuda/ptx>

#include "../gates/gate.h"
#include "../plan/resident.h"
#include "block.cuh"

namespace eca {

namespace ptx = cuda::ptx;

template <class A>
struct ClusterChannels {
  using Value = A;

  int64_t count, per, first, own;  // channels: of the sample, of a block at most, and this block's
  int rank, ranks;
  A* warps;    // shared memory for one number per warp
  A* scratch;  // shared memory, of the gate
  A* memory;   // shared memory: 2 * memory_size numbers, for exchanges
  int64_t memory_size;
  uint64_t* barriers;  // 2 * kMaxExchanges
  const A* complete;   // numbers of all channels that all blocks can read, or null
  int sample;          // how many samples came before
  int step = 0;
  int64_t used = 0;

  template <class Body>
  __device__ void times(int64_t numbers, Body body) const {
    __syncthreads();
#pragma unroll 1
    for (int64_t j = threadIdx.x; j < numbers; j += blockDim.x) body(j);
    __syncthreads();
  }
  template <class Body>
  __device__ void each(Body body) const {
    times(own, [&](int64_t i) { body(first + i); });
  }

  __device__ A load(const A* p, int64_t c) const { return p[c]; }
  __device__ void store(A* p, int64_t c, A value) const { p[c] = value; }
  __device__ A window(const A* p, int64_t c, int64_t j) const { return p[c + j]; }

  template <class Term>
  __device__ A sum(Term term) {
    __syncthreads();
    A total = 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < own; i += blockDim.x) total += term(first + i);
    total = sum_of_block(total, warps);
    const A* const parts = exchange(ranks, ranks, [&](A* to, uint64_t* barrier) {
      for (int q = threadIdx.x; q < ranks; q += blockDim.x) push(to + rank, total, q, barrier);
    });
    return sum_of_parts(parts, 0, 1);
  }

  template <class Term>
  __device__ void sums(int64_t rows, A* out, Term term) {
    if (rows == 0) return;
    const A* const parts = exchange(ranks * rows, ranks * rows, [&](A* to, uint64_t* barrier) {
      each_sum(rows, term, [&](int64_t j, A total, int lane) {
        for (int q = lane; q < ranks; q += kWarp) push(to + rank * rows + j, total, q, barrier);
      });
    });
    times(rows, [&](int64_t j) { out[j] = sum_of_parts(parts, j, rows); });
  }

  template <class Number>
  __device__ void keep(int64_t numbers, A* p, Number number) const {
    times(rank == 0 ? numbers : 0, [&](int64_t j) { p[j] = number(j); });
  }

  template <class Term>
  __device__ void keep_sums(int64_t rows, A* p, Term term) {
    const A* const parts = exchange(ranks * rows, rank == 0 ? ranks * rows : 0, [&](A* to, uint64_t* barrier) {
      each_sum(rows, term, [&](int64_t j, A total, int lane) {
        if (lane == 0) push(to + rank * rows + j, total, 0, barrier);
      });
    });
    keep(rows, p, [&](int64_t j) { return sum_of_parts(parts, j, rows); });
  }

  __device__ const A* pad(int, const A* values, int64_t half, bool circular) {
    A* padded;
    if (values == complete) {
      padded = take(count + 2 * half);
      times(count, [&](int64_t c) { padded[half + c] = values[c]; });
    } else {
      padded = gather(values, half);
    }
    times(2 * half, [&](int64_t i) {
      const int64_t at = i < half ? i : count + i, c = padded_channel(at - half, count, circular);
      padded[at] = c < 0 ? A(0) : padded[half + c];
    });
    return padded;
  }

  // Every block's own channels of `values`, in every block, behind and before room for `half` numbers.
  __device__ A* gather(const A* values, int64_t half) {
    return exchange(count + 2 * half, count, [&](A* to, uint64_t* barrier) {
      for (int64_t i = threadIdx.x; i < own * ranks; i += blockDim.x) {
        const int64_t c = first + i % own;
        push(to + half + c, values[c], static_cast<int>(i / own), barrier);
      }
    });
  }

  // out[c] = the sum of partial[c] over the blocks, for this block's own channels; partial has all channels.
  __device__ void scatter_sums(const A* partial, A* out) {
    const A* const parts = exchange(ranks * per, ranks * own, [&](A* to, uint64_t* barrier) {
      for (int64_t c = threadIdx.x; c < count; c += blockDim.x) {
        const int q = static_cast<int>(c / per);
        push(to + rank * per + c - q * per, partial[c], q, barrier);
      }
    });
    each([&](int64_t c) { out[c] = sum_of_parts(parts, c - first, per); });
  }

 private:
  __device__ A* take(int64_t numbers) {
    A* const taken = memory + sample % 2 * memory_size + used;
    used += numbers;
    return taken;
  }

  // send(to, barrier) pushes to the same places in other blocks; `expected` numbers arrive here, in room for `numbers`.
  template <class Send>
  __device__ A* exchange(int64_t numbers, int64_t expected, Send send) {
    A* const room = take(numbers);
    uint64_t* const barrier = barriers + 2 * step++ + sample % 2;
    __syncthreads();
    if (expected > 0 && threadIdx.x == 0)
      ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, barrier,
                                     static_cast<uint32_t>(expected * sizeof(A)));
    send(room, barrier);
    if (expected > 0) {
      while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, barrier, sample / 2 % 2)) {
      }
    }
    return room;
  }

  __device__ void push(A* to, A value, int q, uint64_t* barrier) const {
    const auto cluster = cooperative_groups::this_cluster();
    ptx::st_async(cluster.map_shared_rank(to, q), value, cluster.map_shared_rank(barrier, q));
  }

  // done(j, sum of term(j, c) over this block's channels, lane), by all lanes of a warp.
  template <class Term, class Done>
  __device__ void each_sum(int64_t rows, Term term, Done done) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int64_t j = threadIdx.x / kWarp; j < rows; j += blockDim.x / kWarp) {
      A total = 0;
#pragma unroll 2
      for (int64_t i = lane; i < own; i += kWarp) total += term(j, first + i);
      done(j, sum_of_lanes(total, kWarp), lane);
    }
  }

  __device__ A sum_of_parts(const A* parts, int64_t j, int64_t stride) const {
    A total = parts[j];
    for (int r = 1; r < ranks; ++r) total += parts[r * stride + j];
    return total;
  }
};

}  // namespace eca
