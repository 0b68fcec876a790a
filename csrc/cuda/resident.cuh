// SPDX-License-Identifier: MIT
// L1. The kernel that reads every feature map once: the blocks of a cluster keep a sample in their shared memory
// between the reduction and the apply step. Block r of R holds the r-th part of its planes (kPlanes) or of its rows
// (kRows), a slab. Clusters take samples n, n + clusters, n + 2 clusters, ...; with several slabs per block, the next
// samples are on their way while one is worked on. Of one sample:
//
//   load      bulk copies into the slab, counted by its mbarrier
//   reduce    from the slab (backward: and from x and y, which are read here only)
//   exchange  kRows: the sums of each channel go to the block that owns it; kPlanes: they are there
//   gate      gates/ on the cluster's blocks (cluster.cuh); kRows: the gates of all channels go to all blocks
//   apply     from the slab to global memory
#pragma once
#include "cluster.cuh"
#include "gate.cuh"
#include "maps.cuh"
#include "resident_args.h"
#include "walk.cuh"

namespace eca {

// Numbers per channel in shared memory, and where this block stands.
template <class T, Layout L, int N, class Call>
struct ResidentBase {
  using Element = T;
  using A = Accumulator<T>;
  using Args = ResidentArgs<A, Call>;
  const Args& args;
  ClusterChannels<A>& x;
  int64_t run0, runs;  // planes or rows of the slab

  // For this block's own channels, addressed by channel; `which` as in ResidentLayout.
  __device__ A* own(int which) const { return shared_at<A>(args.plan.shared.numbers) + which * x.per - x.first; }
  __device__ A* partial() const { return shared_at<A>(args.plan.shared.partial); }

  __device__ Slab<T> slab(int stage) const {
    const int64_t length = L == Layout::kPlanes ? args.problem.s : args.problem.c;
    return {shared_at<T>(args.plan.shared.slabs + stage * args.plan.slab_bytes), static_cast<int>(length), run0};
  }

  // Calls f with tiles that fit a block's threads.
  template <class F>
  __device__ void tiles(F f) const {
    if constexpr (L == Layout::kPlanes) {
      f(Tile{run0, run0 + runs, 0, args.problem.s});
    } else {
      const int64_t c = args.problem.c, strip = int64_t{blockDim.x} * N;
      for (int64_t c0 = 0; c0 < c; c0 += strip) f(Tile{c0, c0 + strip < c ? c0 + strip : c, run0, run0 + runs});
    }
  }

  // The sums of this block's own channels into own(0).
  template <class Term>
  __device__ void sums(const Term& term) {
    A* const parts = shared_at<A>(args.plan.shared.parts);
    if constexpr (L == Layout::kPlanes) {
      tiles([&](const Tile& tile) { Reduce<A, L, N>::sums(tile, args.plan.lanes, term, parts, own(0) + x.first); });
    } else {
      tiles([&](const Tile& tile) {
        Reduce<A, L, N>::sums(tile, 1, term, parts, partial() + tile.c0);
        __syncthreads();  // parts are free again
      });
      x.scatter_sums(partial(), own(0));
    }
    __syncthreads();
  }

  // own(which) as the apply step needs it: of all channels it visits, addressed by channel.
  __device__ const A* everywhere(int which) const {
    if constexpr (L == Layout::kPlanes) return own(which);
    return x.gather(own(which), 0);
  }
};

template <class T, Layout L, int N>
struct ResidentForward : ResidentBase<T, L, N, ForwardCall> {
  using Base = ResidentBase<T, L, N, ForwardCall>;
  using A = typename Base::A;
  using Base::args;
  using Base::x;
  static constexpr Direction kDirection = Direction::kForward;

  __device__ static const Batch& resident(const ForwardCall& call) { return call.x; }
  __device__ static const A* complete(const ForwardCall&, int64_t) { return nullptr; }

  __device__ void run(int64_t n, int stage) {
    const ForwardCall& call = args.call;
    const Slab<T> slab = this->slab(stage);
    this->sums(Pool<T, N, Slab<T>>{slab});
    A *const sums = this->own(0), *const mean = this->own(1), *const gate = this->own(2);
    A* const kept = call.mean ? static_cast<A*>(call.mean) + n * args.problem.c : nullptr;
    x.each([&](int64_t c) {
      mean[c] = sums[c] / static_cast<A>(args.problem.s);
      if (kept) kept[c] = mean[c];
    });
    gate_forward(args.problem.variant, args.gate_args, x, static_cast<const A*>(mean), gate);
    const A* const gates = this->everywhere(2);
    const Rescale<T, N, Slab<T>> body{slab, Map<T>(call.residual, n), Map<T>(call.y, n),
                                      (args.problem.flags & kRelu) != 0};
    this->tiles([&](const Tile& tile) { Walk<A, L, N>::each(tile, gates, static_cast<const A*>(nullptr), body); });
  }
};

template <class T, Layout L, int N>
struct ResidentBackward : ResidentBase<T, L, N, BackwardCall> {
  using Base = ResidentBase<T, L, N, BackwardCall>;
  using A = typename Base::A;
  using Base::args;
  using Base::x;
  static constexpr Direction kDirection = Direction::kBackward;

  __device__ static const Batch& resident(const BackwardCall& call) { return call.grad_y; }
  __device__ static const A* complete(const BackwardCall& call, int64_t n_times_c) {
    return static_cast<const A*>(call.mean) + n_times_c;
  }

  __device__ void run(int64_t n, int stage) {
    const BackwardCall& call = args.call;
    const Slab<T> slab = this->slab(stage);
    this->sums(
        Dot<T, N, Slab<T>, Masking::kMask>{slab, Map<T>(call.x, n), Map<T>(call.y, n), Map<T>(call.grad_residual, n)});
    A *const gate = this->own(2), *const shift = this->own(3);
    gate_backward(args.problem.variant, args.gate_args, x, x.complete, static_cast<const A*>(this->own(0)), gate, shift,
                  static_cast<A*>(call.record) + n * call.record_size,
                  static_cast<A*>(call.field) + n * args.problem.c);
    x.each([&](int64_t c) { shift[c] /= static_cast<A>(args.problem.s); });
    const A *const gates = this->everywhere(2), *const shifts = this->everywhere(3);
    const Gradient<T, N, Slab<T>> body{slab, {}, Map<T>(call.grad_x, n), {}};
    this->tiles([&](const Tile& tile) { Walk<A, L, N>::each(tile, gates, shifts, body); });
  }
};

// Issues the copies of one slab, in pieces that the hardware takes. One thread.
__device__ inline void load_slab(unsigned char* slab, const char* from, int64_t bytes, uint64_t* barrier) {
  ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, barrier,
                                 static_cast<uint32_t>(bytes));
  constexpr int64_t kPiece = 16384;
  for (int64_t at = 0; at < bytes; at += kPiece)
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, slab + at, from + at,
                       static_cast<uint32_t>(bytes - at < kPiece ? bytes - at : kPiece), barrier);
}

template <class Pass>
__global__ void __launch_bounds__(512, 2) resident(const __grid_constant__ typename Pass::Args args) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // clusters; the plan asks for none before
  using A = typename Pass::A;
  const ResidentPlan& plan = args.plan;
  const Problem& p = args.problem;
  const int ranks = plan.ranks, rank = static_cast<int>(blockIdx.x) % ranks;
  const int64_t cluster = blockIdx.x / ranks, clusters = gridDim.x / ranks;
  const bool planes = p.layout == Layout::kPlanes;
  const auto part = [&](int64_t total, int64_t per, int64_t* first) {
    *first = rank * per < total ? rank * per : total;
    return total - *first < per ? total - *first : per;
  };

  ClusterChannels<A> x{};
  x.count = p.c;
  x.per = plan.channels;
  x.own = part(p.c, plan.channels, &x.first);
  x.rank = rank;
  x.ranks = ranks;
  x.warps = shared_at<A>(plan.shared.warps);
  x.scratch = shared_at<A>(plan.shared.scratch);
  x.memory = shared_at<A>(plan.shared.exchanges);
  x.memory_size = plan.exchange_numbers;
  x.barriers = shared_at<uint64_t>(plan.shared.barriers) + plan.stages;
  Pass pass{{args, x, 0, 0}};
  pass.runs = part(planes ? p.c : p.s, plan.runs, &pass.run0);

  uint64_t* const loaded = shared_at<uint64_t>(plan.shared.barriers);
  const Batch& map = Pass::resident(args.call);
  constexpr int64_t item = sizeof(typename Pass::Element);
  const int64_t bytes = pass.runs * (planes ? p.s : p.c) * item;
  const auto load = [&](int64_t n, int stage) {
    load_slab(shared_at<unsigned char>(plan.shared.slabs + stage * plan.slab_bytes),
              static_cast<const char*>(map.data) + (n * map.sample_stride + pass.run0 * map.run_stride) * item, bytes,
              loaded + stage);
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.stages + 2 * kMaxExchanges; ++i) ptx::mbarrier_init(loaded + i, 1);
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  __syncthreads();
  ptx::barrier_cluster_arrive(ptx::sem_relaxed);  // the barriers are initialised in all blocks before anyone pushes
  if (threadIdx.x == 0)
    for (int stage = 0; stage < plan.stages && cluster + stage * clusters < p.n; ++stage)
      load(cluster + stage * clusters, stage);
  ptx::barrier_cluster_wait(ptx::sem_acquire);

  for (int64_t n = cluster; n < p.n; n += clusters, ++x.sample) {
    const int stage = x.sample % plan.stages;
    x.step = 0;
    x.used = 0;
    x.complete = Pass::complete(args.call, n * p.c);
    while (
        !ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cta, loaded + stage, x.sample / plan.stages % 2)) {
    }
    pass.run(n, stage);
    // Whatever threads have written to the slab comes before the copy that overwrites it.
    ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    const int64_t next = n + plan.stages * clusters;
    if (threadIdx.x == 0 && next < p.n) load(next, stage);
  }
#else
  __trap();  // never silence: resident_clusters in device.cpp refuses code for architectures without clusters
#endif
}

}  // namespace eca
