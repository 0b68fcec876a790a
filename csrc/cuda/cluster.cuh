// SPDX-License-Identifier: MIT
// L1. The executor of the gates (gates/gate.h) on the blocks of a cluster, which share out the channels of a sample and
// tell each other what they need by asynchronous pushes into shared memory: st.async, counted by an mbarrier.
//
// Every step that needs others is an exchange: it has a piece of memory and an mbarrier of its own, twice, for even and
// for odd samples. So a push for a sample may arrive while this block is still busy with the sample before. It can't be
// two ahead: whoever pushes for sample u + 2 has met all blocks in sample u + 1, which this block entered after it was
// done with sample u. Blocks meet where each waits for numbers from all, or else at the end of the sample (part_ways).
// A block that is alone stores instead of pushing.
#pragma once
#include <cooperative_groups.h>

#include <cuda/ptx>

#include "../gates/gate.h"
#include "../plan/resident.h"
#include "block.cuh"

namespace eca {

namespace ptx = cuda::ptx;

// The same place in the shared memory of block q of the cluster.
template <class T>
__device__ T* in_block(T* p, int q) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(p, q);
#else
  return q == 0 ? p : nullptr;  // blocks are alone there
#endif
}

// What a block is and where it stands, in shared memory: registers are scarce.
struct Part {
  int64_t n;       // the sample
  int sample;      // how many came before it
  int stage;       // where its slab is
  int rank;        // of the block in its cluster
  int first, own;  // channels
  int run0, runs;  // planes or rows of the slab
};

// kAlone: for devices without clusters. What does not change is read from the plan, a kernel's parameter, whenever it
// is needed: that takes no registers.
template <class A, bool kAlone>
struct ClusterChannels {
  using Value = A;

  const Problem& problem;
  const ResidentPlan& plan;
  const A* means;          // of all samples, where all blocks can read them; or null
  int64_t record_size;     // keep and keep_sums are given the first sample's record, and write this sample's
  int step = 0, used = 0;  // exchanges of this sample, and what they took of their memory
  bool met = false;        // whether all blocks have waited for all in this sample
  A* scratch = shared_at<A>(plan.shared.scratch);  // of the gate

  __device__ int count() const { return static_cast<int>(problem.c); }
  __device__ int ranks() const { return kAlone ? 1 : plan.ranks; }
  __device__ const Part& part() const { return *shared_at<Part>(plan.shared.part); }
  __device__ int own() const { return part().own; }
  __device__ uint64_t* barriers() const { return shared_at<uint64_t>(plan.shared.barriers); }  // 2 * kMaxExchanges

  // Before anything else; afterwards all blocks must wait for each other once.
  __device__ void start() const {
    if constexpr (!kAlone) {
      if (threadIdx.x != 0) return;
      for (int i = 0; i < 2 * kMaxExchanges; ++i) ptx::mbarrier_init(barriers() + i, 1);
    }
  }

  // Before a sample, and after it. Gates whose blocks meet, as all of today's do, have no barrier at the end.
  __device__ void begin() {
    step = used = 0;
    met = false;
  }
  __device__ void part_ways() const {
    if constexpr (!kAlone) {
      if (met || ranks() == 1) return;
      ptx::barrier_cluster_arrive(ptx::sem_relaxed);
      ptx::barrier_cluster_wait(ptx::sem_acquire);
    }
  }

  template <class Body>
  __device__ void times(int numbers, Body body) const {
    __syncthreads();
#pragma unroll 1
    for (int j = threadIdx.x; j < numbers; j += blockDim.x) body(j);
    __syncthreads();
  }
  template <class Body>
  __device__ void each(Body body) const {
    times(own(), [&](int i) { body(part().first + i); });
  }

  __device__ A load(const A* p, int c) const { return p[c]; }
  __device__ void store(A* p, int c, A value) const { p[c] = value; }
  __device__ A window(const A* p, int c, int j) const { return p[c + j]; }
  __device__ A weight(const A* p, int j, int c) const {
    if (plan.kept_rows == 0) return p[static_cast<int64_t>(j) * count() + c];
    return shared_at<A>(plan.shared.kept)[j * plan.channels + c - part().first];
  }

  template <class Term>
  __device__ A sum(Term term) {
    __syncthreads();
    A total = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < own(); i += blockDim.x) total += term(part().first + i);
    total = sum_of_block(total, shared_at<A>(plan.shared.warps));
    const A* const parts = exchange(ranks(), ranks(), [&](A* to, uint64_t* barrier) {
      for (int q = threadIdx.x; q < ranks(); q += blockDim.x) push(to + part().rank, total, q, barrier);
    });
    return sum_of_parts(parts, 0, 1);
  }

  template <class Term>
  __device__ void sums(int rows, A* out, Term term) {
    if (rows == 0) return;
    const A* const parts = exchange(ranks() * rows, ranks() * rows, [&](A* to, uint64_t* barrier) {
      each_sum(rows, term, [&](int j, A total, int lane) {
        for (int q = lane; q < ranks(); q += kWarp) push(to + part().rank * rows + j, total, q, barrier);
      });
    });
    times(rows, [&](int j) { out[j] = sum_of_parts(parts, j, rows); });
  }

  template <class Number>
  __device__ void keep(int numbers, A* p, Number number) const {
    times(part().rank == 0 ? numbers : 0, [&](int j) { p[part().n * record_size + j] = number(j); });
  }

  template <class Term>
  __device__ void keep_sums(int rows, A* p, Term term) {
    const A* const parts =
        exchange<false>(ranks() * rows, part().rank == 0 ? ranks() * rows : 0, [&](A* to, uint64_t* barrier) {
          each_sum(rows, term, [&](int j, A total, int lane) {
            if (lane == 0) push(to + part().rank * rows + j, total, 0, barrier);
          });
        });
    keep(rows, p, [&](int j) { return sum_of_parts(parts, j, rows); });
  }

  __device__ const A* pad(int, const A* values, int half, bool circular) {
    A* padded;
    if (means && values == means + part().n * problem.c) {
      padded = take(count() + 2 * half);
      times(count(), [&](int c) { padded[half + c] = values[c]; });
    } else {
      padded = gather(values, half);
    }
    times(2 * half, [&](int i) {
      const int at = i < half ? i : count() + i, c = padded_channel(at - half, count(), circular);
      padded[at] = c < 0 ? A(0) : padded[half + c];
    });
    return padded;
  }

  // Every block's own channels of `values`, in every block, behind and before room for `half` numbers.
  __device__ A* gather(const A* values, int half) {
    return exchange(count() + 2 * half, count(), [&](A* to, uint64_t* barrier) {
      for (int i = threadIdx.x; i < own() * ranks(); i += blockDim.x) {
        const int c = part().first + i % own();
        push(to + half + c, values[c], i / own(), barrier);
      }
    });
  }

  // out[c] = the sum of partial[c] over the blocks, for this block's own channels; partial has all channels.
  __device__ void scatter_sums(const A* partial, A* out) {
    const A* const parts = exchange(ranks() * plan.channels, ranks() * own(), [&](A* to, uint64_t* barrier) {
      for (int c = threadIdx.x; c < count(); c += blockDim.x) {
        const int q = c / plan.channels;
        push(to + part().rank * plan.channels + c - q * plan.channels, partial[c], q, barrier);
      }
    });
    each([&](int c) { out[c] = sum_of_parts(parts, c - part().first, plan.channels); });
  }

 private:
  __device__ A* take(int numbers) {
    const int second = ranks() > 1 ? part().sample % 2 * plan.exchange_numbers : 0;
    A* const taken = shared_at<A>(plan.shared.exchanges) + second + used;
    used += numbers;
    if (used > plan.exchange_numbers) __trap();  // a gate that exchanges more than it has said
    return taken;
  }

  // send(to, barrier) pushes to the same places in other blocks; `expected` numbers arrive here, in room for `numbers`.
  // kMeet: in every block, from every block.
  template <bool kMeet = true, class Send>
  __device__ A* exchange(int numbers, int expected, Send send) {
    __syncthreads();
    met |= kMeet;
    if (step == kMaxExchanges) __trap();  // a gate with more steps than there are barriers for; gate.h
    A* const room = take(numbers);
    uint64_t* const barrier = barriers() + 2 * step++ + part().sample % 2;
    if constexpr (!kAlone) {
      if (ranks() > 1) {
        if (expected > 0 && threadIdx.x == 0)
          ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, barrier,
                                         static_cast<uint32_t>(expected * sizeof(A)));
        send(room, barrier);
        if (expected > 0) {
          while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cluster, barrier, part().sample / 2 % 2)) {
          }
        }
        return room;
      }
    }
    send(room, barrier);
    __syncthreads();
    return room;
  }

  __device__ void push(A* to, A value, int q, uint64_t* barrier) const {
    if constexpr (!kAlone) {
      if (ranks() > 1) {
        ptx::st_async(in_block(to, q), value, in_block(barrier, q));
        return;
      }
    }
    *to = value;
  }

  // done(j, sum of term(j, c) over this block's channels, lane), by all lanes of a warp.
  template <class Term, class Done>
  __device__ void each_sum(int rows, Term term, Done done) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int j = threadIdx.x / kWarp; j < rows; j += blockDim.x / kWarp) {
      A total = 0;
#pragma unroll 1
      for (int i = lane; i < own(); i += kWarp) total += term(j, part().first + i);
      done(j, sum_of_lanes(total, kWarp), lane);
    }
  }

  __device__ A sum_of_parts(const A* parts, int j, int stride) const {
    A total = parts[j];
#pragma unroll 1
    for (int r = 1; r < ranks(); ++r) total += parts[r * stride + j];
    return total;
  }
};

}  // namespace eca
