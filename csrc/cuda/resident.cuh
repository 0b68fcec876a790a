// SPDX-License-Identifier: MIT
// L1. The kernel that reads every feature map once: the blocks of a cluster keep a sample in their shared memory
// between the reduction and the apply step. Block r of R holds the r-th part of its planes (kPlanes) or of its rows
// (kRows), a slab. Clusters take samples n, n + clusters, n + 2 clusters, ...; with several slabs per block, the next
// samples are on their way while one is worked on. Of one sample:
//
//   load      copies.cuh, into the slab
//   reduce    from the slab as it arrives (backward: and from x, which is read here only; where vectors straddle
//             planes, it is parked behind the slab)
//   exchange  kRows: the sums of each channel go to the block that owns it; kPlanes: they are there
//   gate      gates/ on the cluster's blocks (cluster.cuh); kRows: the gates of all channels go to all blocks
//   apply     from the slab to global memory
#pragma once
#include "cluster.cuh"
#include "copies.cuh"
#include "dense.cuh"
#include "gate.cuh"
#include "resident_args.h"

namespace eca {

// What distinguishes the kernels: N elements of type T per load and store; kStraddle: planes are not a number of those.
template <class T_, Layout L, int N_, bool kStraddle_, Copies C>
struct Instance {
  using T = T_;
  using A = Accumulator<T>;
  using Loader = std::conditional_t<C == Copies::kBulk, BulkLoader, ThreadLoader>;
  using Executor = ClusterChannels<A, C == Copies::kThreads>;
  static constexpr Copies kCopies = C;
  static constexpr bool kPlanes = L == Layout::kPlanes, kStraddle = kStraddle_;
  static constexpr int N = N_;
};

// The numbers of a sample in shared memory, and the steps that both directions share. Places in maps are relative to
// the block's part of a sample.
template <class I, class Call>
struct ResidentBase {
  using Kind = I;
  using T = typename I::T;
  using A = typename I::A;
  using Args = ResidentArgs<A, Call>;
  // A map that is not kept.
  struct Other : Runs<T, int> {
    Hint hint;
    template <int N>
    __device__ __forceinline__ void store(int run, int i, const A (&values)[N]) const {
      Vector<T, N>::store(this->at(run, i), values, hint);
    }
  };
  static constexpr Layout kLayout = I::kPlanes ? Layout::kPlanes : Layout::kRows;
  static constexpr int N = I::N;
  const Args& args;
  typename I::Executor& x;

  __device__ const Part& part() const { return x.part(); }
  __device__ int length() const { return static_cast<int>(I::kPlanes ? args.problem.s : args.problem.c); }  // of a run

  __device__ Other other(const Batch& map, int64_t n) const {
    T* const data = static_cast<T*>(map.data);
    return {{data ? data + n * map.sample_stride + static_cast<int64_t>(part().run0) * length() : nullptr, length()},
            hint_of((args.plan.evict_first & kWritten) != 0)};
  }
  __device__ Other other(const Batch& map) const { return other(map, part().n); }

  // Numbers for each of this block's own channels, addressed by channel: the sum and later the mean; the gate; the
  // shift.
  __device__ A* own(int which) const {
    return shared_at<A>(args.plan.shared.numbers) + which * args.plan.channels - part().first;
  }

  // own(which) as `visit` needs it: of all channels there, from the first on.
  __device__ const A* everywhere(int which) const {
    if constexpr (I::kPlanes) return own(which) + part().first;
    return x.gather(own(which), 0);
  }

  // The sums of this block's own channels into own(0).
  template <class Term>
  __device__ void sums(const Term& term) const {
    const ResidentPlan& plan = args.plan;
    A *const parts = shared_at<A>(plan.shared.parts), *const out = own(0) + part().first;
    if constexpr (I::kStraddle) {
      Dense<A, N, true>::sums(part().runs, length(), plan.lanes, plan.group, term, parts, out);
    } else if constexpr (I::kPlanes) {
      Reduce<A, kLayout, N>::sums(TileOf<int>{0, part().runs, 0, length()}, plan.lanes, term, parts, out);
    } else {
      A* const partial = shared_at<A>(plan.shared.partial);  // of all channels
      strips([&](const TileOf<int>& tile) {
        Reduce<A, kLayout, N>::sums(tile, 1, term, parts, partial + tile.c0);
        __syncthreads();  // parts are free again
      });
      x.scatter_sums(partial, own(0));
    }
    __syncthreads();
  }

  template <class Gate, class Shift, class Body>
  __device__ void visit(Gate gate, Shift shift, const Body& body) const {
    if constexpr (I::kPlanes) {
      Dense<A, N, I::kStraddle>::each(part().runs, length(), gate, shift, body);
    } else {
      strips([&](const TileOf<int>& tile) { Walk<A, kLayout, N>::each(tile, gate, shift, body); });
    }
  }

 private:
  // kRows: calls f with tiles of as many columns as threads take in one step.
  template <class F>
  __device__ void strips(F f) const {
    const int c = length(), strip = blockDim.x * N;
    for (int c0 = 0; c0 < c; c0 += strip) f(TileOf<int>{c0, c0 + strip < c ? c0 + strip : c, 0, part().runs});
  }
};

template <class I>
struct ResidentForward : ResidentBase<I, ForwardCall> {
  using Base = ResidentBase<I, ForwardCall>;
  using Base::args;
  using Base::N;
  using Base::x;
  using typename Base::A;
  using typename Base::Other;
  using typename Base::T;

  __device__ static const Batch& resident(const ForwardCall& call) { return call.x; }
  __device__ static const Batch& parked(const ForwardCall& call) { return call.x; }
  __device__ static const A* means(const ForwardCall&) { return nullptr; }
  __device__ static int64_t record_size(const ForwardCall&) { return 0; }

  template <class S>
  __device__ void run(const S& slab) const {
    const ForwardCall& call = args.call;
    this->sums(Pool<T, N, S>{slab});
    A *const mean = this->own(0), *const gate = this->own(1);
    A* const kept = call.mean ? static_cast<A*>(call.mean) + this->part().n * args.problem.c : nullptr;
    x.each([&](int c) {
      mean[c] /= static_cast<A>(args.problem.s);
      if (kept) kept[c] = mean[c];
    });
    gate_forward(args.problem.variant, args.gate_args, x, static_cast<const A*>(mean), gate);
    const A* const gates = this->everywhere(1);
    const bool relu = (args.problem.flags & kRelu) != 0;
    if (relu || call.residual.data) {
      this->visit(gates, Zeros<A>(),
                  RescaleRelu<T, N, Slab<T>, Other>{slab, this->other(call.residual), this->other(call.y), relu});
    } else {
      this->visit(gates, Zeros<A>(), Rescale<T, N, Slab<T>, Other>{slab, this->other(call.y)});
    }
  }
};

template <class I>
struct ResidentBackward : ResidentBase<I, BackwardCall> {
  using Base = ResidentBase<I, BackwardCall>;
  using Base::args;
  using Base::N;
  using Base::x;
  using typename Base::A;
  using typename Base::Other;
  using typename Base::T;

  __device__ static const Batch& resident(const BackwardCall& call) { return call.grad_y; }
  __device__ static const Batch& parked(const BackwardCall& call) { return call.x; }
  __device__ static const A* means(const BackwardCall& call) { return static_cast<const A*>(call.mean); }
  __device__ static int64_t record_size(const BackwardCall& call) { return call.record_size; }

  template <class S>
  __device__ void run(const S& slab) const {
    const BackwardCall& call = args.call;
    if (call.y.data) {
      this->visit(Zeros<A>(), Zeros<A>(),
                  Mask<T, N, S, Other>{slab, this->other(call.y), this->other(call.grad_residual)});
      __syncthreads();
    }
    dot(slab);
    A *const gate = this->own(1), *const shift = this->own(2);
    gate_backward(args.problem.variant, args.gate_args, x, x.means + this->part().n * args.problem.c,
                  static_cast<const A*>(this->own(0)), gate, shift, static_cast<A*>(call.record),
                  static_cast<A*>(call.field) + this->part().n * args.problem.c);
    x.each([&](int c) { shift[c] /= static_cast<A>(args.problem.s); });
    const A *const gates = this->everywhere(1), *const shifts = this->everywhere(2);
    this->visit(gates, shifts, Gradient<T, N, Slab<T>, Absent<T>, Other>{slab, {}, this->other(call.grad_x), {}});
  }

 private:
  template <class S>
  __device__ void dot(const S& slab) const {
    if constexpr (I::kStraddle) {
      if (args.plan.parked) {
        const Slab<T> parked{{slab.data + args.plan.slab_bytes / int{sizeof(T)}, slab.stride}};
        return this->sums(Dot<T, N, S, Slab<T>, false>{slab, parked, {}});
      }
    }
    this->sums(Dot<T, N, S, Other, false>{slab, this->other(args.call.x), {}});
  }
};

template <class Pass>
__device__ void run_resident(const typename Pass::Args& args) {
  using Kind = typename Pass::Kind;
  using A = typename Pass::A;
  using T = typename Pass::T;
  const ResidentPlan& plan = args.plan;
  const Problem& p = args.problem;
  typename Kind::Executor x{p, plan, Pass::means(args.call), Pass::record_size(args.call)};
  const Pass pass{{args, x}};
  typename Kind::Loader loader;
  if constexpr (Kind::kCopies == Copies::kBulk) {
    loader = {x.barriers() + 2 * kMaxExchanges, plan.stages, plan.piece_shift, (plan.evict_first & kRead) != 0};
  } else {
    loader = {plan.stages};
  }
  const auto data = [&](int stage) {
    return shared_at<T>(plan.shared.slabs + stage * (plan.parked ? 2 : 1) * plan.slab_bytes);
  };
  const auto load = [&](int64_t n, int stage) {
    const auto of = [&](const Batch& map) { return reinterpret_cast<const char*>(pass.other(map, n).data); };
    const bool more = n < p.n;
    loader.load(stage, reinterpret_cast<unsigned char*>(data(stage)), plan.slab_bytes,
                more ? of(Pass::resident(args.call)) : nullptr,
                more && plan.parked ? of(Pass::parked(args.call)) : nullptr,
                pass.part().runs * pass.length() * static_cast<int>(sizeof(T)));
  };

  if (threadIdx.x == 0) {
    const int rank = static_cast<int>(blockIdx.x) % plan.ranks;
    const auto cut = [&](int total, int per, int* first) {
      *first = rank * per < total ? rank * per : total;
      return total - *first < per ? total - *first : per;
    };
    Part& part = *shared_at<Part>(plan.shared.part);
    part.n = blockIdx.x / plan.ranks;
    part.sample = part.stage = 0;
    part.rank = rank;
    part.own = cut(static_cast<int>(p.c), plan.channels, &part.first);
    part.runs = cut(static_cast<int>(Kind::kPlanes ? p.c : p.s), plan.runs, &part.run0);
  }
  x.start();
  loader.start();
  if constexpr (Kind::kCopies == Copies::kBulk) {
    if (threadIdx.x == 0) ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
    __syncthreads();
    ptx::barrier_cluster_arrive(ptx::sem_relaxed);  // the barriers are initialised in all blocks before anyone pushes
  } else {
    __syncthreads();
  }
  for (int stage = 0; stage < plan.stages; ++stage) load(pass.part().n + stage * plan.clusters, stage);
  for (int j = 0; j < plan.kept_rows; ++j) {
    const A* const row = args.gate_args.parameters[plan.kept_parameter] + j * p.c + pass.part().first;
    for (int i = threadIdx.x; i < x.own(); i += blockDim.x)
      shared_at<A>(plan.shared.kept)[j * plan.channels + i] = row[i];
  }
  if constexpr (Kind::kCopies == Copies::kBulk) ptx::barrier_cluster_wait(ptx::sem_acquire);

  while (pass.part().n < p.n) {
    x.begin();
    loader.wait();
    pass.run(loader.slab(data(pass.part().stage), pass.length(), pass.part().stage, pass.part().sample));
    x.part_ways();
    loader.release();
    __syncthreads();
    load(pass.part().n + plan.stages * plan.clusters, pass.part().stage);
    __syncthreads();
    if (threadIdx.x == 0) {
      Part& part = *shared_at<Part>(plan.shared.part);
      part.n += plan.clusters;
      part.stage = ++part.sample % plan.stages;
    }
    __syncthreads();
  }
}

// The architectures that have what an instance is made of; the plan asks for none elsewhere.
template <Copies C>
__host__ __device__ constexpr bool is_built() {
#if !defined(__CUDA_ARCH__)
  return true;
#elif __CUDA_ARCH__ >= 900
  return C == Copies::kBulk;
#else
  return C == Copies::kThreads && __CUDA_ARCH__ >= 800;
#endif
}

template <class Pass>
__global__ void __launch_bounds__(512, 2) resident(const __grid_constant__ typename Pass::Args args) {
  if constexpr (is_built<Pass::Kind::kCopies>()) {
    run_resident<Pass>(args);
  } else {
    __trap();  // never silence: launch_clusters refuses code for such architectures
  }
}

}  // namespace eca
