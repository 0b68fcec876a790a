// SPDX-License-Identifier: MIT
// L1. The kernels that read every feature map once. Each cluster (on 8.x each block) processes one sample, which stays
// in its blocks' shared memory between the reduction and the visit:
//
//   load      the block's part of the maps, into shared memory (slabs); issued before anything else
//   sum       per channel, from the slabs; backward also from x in global memory, where that has no slab
//   exchange  halo and all-reduce of what the gate needs of other blocks' channels: channels.cuh
//   gate      gates/
//   visit     from the slabs to global memory
//   record    backward: what the parameters' gradients need
//
// In both layouts a block owns channels, and computes their sums and gates. kPlanes: their planes, contiguous in
// memory. kRows: a strip of channels from all rows; where strips would be narrow, several blocks share the positions of
// a strip and add up their sums.
#pragma once
#include "../gates/registry.h"
#include "channels.cuh"
#include "maps.cuh"
#include "planes.cuh"
#include "rows.cuh"

namespace eca {

enum class Walk { kPlanes, kStraddling, kRows };

// A map, and whether a block keeps its part of it in a slab.
struct Kept {
  const MapView& batch;
  bool has_slab;
};

template <class T_, Walk W, class Call>
struct OnePass {
  using T = T_;
  using A = Accumulator<T>;
  static constexpr int N = 16 / sizeof(T);
  static constexpr bool kRows = W == Walk::kRows;
  using Tiles = std::conditional_t<kRows, Rows<A, N>, Planes<A, N, W == Walk::kStraddling>>;
  using Slab = Runs<T, int, false>;  // also of maps in global memory
  using Far = Runs<T, int, true>;

  const OnePassArgs<Call>& args;
  int part;          // which part of the positions this block has
  int64_t offset;    // of the block's first element in a sample
  TileOf<int> tile;  // the block's channels and positions, relative to that
  ClusterChannels x;

  __device__ explicit OnePass(const OnePassArgs<Call>& args_)
      : args(args_), x{{args_.gate, 0, 0, nullptr, 0, nullptr, nullptr, 0}, 1, 0, 0, 0, nullptr, nullptr} {
    const OnePassPlan& plan = args.plan;
    const int c = static_cast<int>(args.problem.c), s = static_cast<int>(args.problem.s);
    const int rank = static_cast<int>(blockIdx.x) % plan.blocks;
    x.blocks = plan.blocks / plan.parts;
    x.block = rank % x.blocks;
    part = rank / x.blocks;
    x.row = part * x.blocks;
    x.channels = plan.channels;
    x.first = x.block * plan.channels;
    x.own = min(plan.channels, c - x.first);
    const int s0 = part * plan.positions;
    offset = kRows ? static_cast<int64_t>(s0) * c + x.first : static_cast<int64_t>(x.first) * s;
    tile = {0, x.own, 0, min(plan.positions, s - s0)};

    x.arrays = shared_at<A>(plan.shared.arrays);
    x.stride = plan.shared.stride;
    x.reserved = kernel_arrays(std::is_same_v<Call, BackwardCall>);
    x.few = shared_at<A>(plan.shared.numbers);
    x.scratch = shared_at<A>(plan.shared.scratch);
    x.barriers = loads() + kLoads;
    x.room = shared_at<A>(plan.shared.sums);
  }

  __device__ int64_t n() const { return blockIdx.x / args.plan.blocks; }  // the sample
  __device__ uint64_t* loads() const { return shared_at<uint64_t>(args.plan.shared.barriers); }
  __device__ int length() const { return static_cast<int>(args.problem.s); }  // of a plane
  __device__ A* mean() const { return x.kernel_array(0); }
  __device__ A* gate() const { return x.kernel_array(1); }
  __device__ A* grad() const { return x.kernel_array(2); }

  __device__ Slab slab(int i) const { return {shared_at<T>(i * args.plan.slabs.bytes), kRows ? x.own : length()}; }
  template <class M>
  __device__ M global(const MapView& map) const {
    T* const data = static_cast<T*>(map.data);
    return {data ? data + n() * map.sample_stride + offset : nullptr,
            kRows ? static_cast<int>(args.problem.c) : length()};
  }

  __device__ bool bulk() const { return !kRows && ptx::has_bulk_copies(args.plan.bulk); }

  // Issues the loads of the block's part of those maps that have slabs: load 0 into slab 0 and the following ones, load
  // 1, which has a wait of its own, into slab 1.
  template <int kWhich, class... Maps>
  __device__ void load(const Maps&... maps) const {
    int i = kWhich;
    if (bulk()) {
      const int bytes = x.own * length() * static_cast<int>(sizeof(T)), count = (0 + ... + maps.has_slab);
      uint64_t* const barrier = loads() + kWhich;
      if (threadIdx.x != 0 || count == 0) return;
      ptx::mbarrier_init(barrier);
      ptx::fence_mbarrier_init();
      ptx::mbarrier_expect(barrier, bytes * count);
      (..., load_run(maps, &i, bytes, barrier));
    } else {
      (..., load_vectors(maps, &i));
      ptx::commit_loads();
    }
  }

  template <int kWhich>
  __device__ void wait() const {
    if (bulk()) return ptx::wait_for_copies(loads() + kWhich);
    ptx::wait_for_loads<1 - kWhich>();
    if (!kRows) __syncthreads();  // in rows, threads read what they have loaded themselves
  }

  // Overlaps the loads. No block pushes before the cluster barrier, which `sum` completes.
  __device__ void prepare() {
    if (threadIdx.x == 0 && args.plan.blocks > 1) {
      for (int i = 0; i < kMaxExchanges; ++i) ptx::mbarrier_init(x.barriers + i);
      ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (args.plan.blocks > 1) ptx::cluster_arrive();
    x.load_numbers();
  }

  // values[c] = the sum over all positions of the own channel c, also of other blocks' parts, divided by `divisor`.
  template <class Term>
  __device__ void sum(const Term& term, A* values, A divisor) {
    const OnePassPlan& plan = args.plan;
    A* const own = values + x.first;
    const A by = plan.parts == 1 ? divisor : A(1);
    Tiles::sums(tile, length(), plan.lanes, term, shared_at<A>(plan.shared.parts),
                [=](int c, const A(&total)[1]) { own[c] = total[0] / by; });
    if (plan.blocks > 1) ptx::cluster_wait();
    if (kRows && plan.parts > 1) x.add_parts(own, plan.parts, part, divisor);
  }

  // numbers[c] is of own channel c.
  template <class Numbers, class Body>
  __device__ void visit(const Numbers& numbers, const Body& body) const {
    Tiles::each(tile, length(), numbers, body);
  }

 private:
  // By one thread: the planes are contiguous.
  __device__ void load_run(const Kept& map, int* i, int bytes, uint64_t* barrier) const {
    constexpr int kMost = 32 << 10;
    if (!map.has_slab) return;
    const char* const from = reinterpret_cast<const char*>(global<Slab>(map.batch).data);
    char* const to = reinterpret_cast<char*>(slab((*i)++).data);
    for (int at = 0; at < bytes; at += kMost) ptx::bulk_load(to + at, from + at, min(kMost, bytes - at), barrier);
  }

  // 16 bytes at a time, by all threads.
  __device__ void load_vectors(const Kept& map, int* i) const {
    if (!map.has_slab) return;
    const Slab from = global<Slab>(map.batch), to = slab((*i)++);
    if constexpr (kRows) {
      Tiles::template walk<1>(tile, [&](auto, int s, int, int c) { ptx::load_16(to.at(s, c), from.at(s, c)); });
    } else {
      for (int at = threadIdx.x * N; at < x.own * length(); at += blockDim.x * N)
        ptx::load_16(to.data + at, from.data + at);
    }
  }
};

// Waits for load 0 inside a reduction, after loads of x have been issued.
template <bool kRows>
struct Arrival {
  uint64_t* barrier;  // null: no need to wait
  mutable bool arrived = false;

  __device__ __forceinline__ void operator()() const {
    if constexpr (kRows) return ptx::wait_for_loads<1>();
    if (barrier && !arrived) ptx::wait_for_copies(barrier);
    arrived = true;
  }
};

struct Scaled {
  const float* numbers;
  float factor;
  __device__ float operator[](int i) const { return __fmul_rn(numbers[i], factor); }  // no fused multiply-add
};

// Before 8.0 there is no cp.async; the plan then never chooses one pass.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kHasOnePass = true;
#else
constexpr bool kHasOnePass = false;
#endif

// The signs of the block's part of y.
template <class Pass>
__device__ SignBytes<typename Pass::T, int> signs_of(const Pass& pass) {
  const Signs& of = pass.args.call.signs;
  uint8_t* const data = of.data ? of.data + pass.n() * of.sample_stride + pass.offset / Pass::N : nullptr;
  return {data, Pass::kRows ? static_cast<int>(pass.args.problem.c) : pass.length()};
}

// Batch norm by given statistics, before the gate. Threads read only what they have stored themselves in `load`.
template <class Pass, bool kPresent>
struct OnePassNorm {
  Pass& pass;
  __device__ void load() const {}
  __device__ void before_gate() const {}
  __device__ const float* after_gate() const { return pass.gate() + pass.x.first; }
};
template <class Pass>
struct OnePassNorm<Pass, true> {
  Pass& pass;

  __device__ float* array(int i) const { return pass.x.array(pass.args.gate.needs.arrays - kNormArrays + i); }
  __device__ ChannelNorm<float> of(int c) const { return {array(1)[c], array(2)[c], 0, array(0)[c]}; }
  __device__ void load() const {
    float *const scale = array(0), *const mean = array(1), *const bias = array(2);
    pass.x.keep_each(scale, [&](int c) {
      const ChannelNorm<float> norm = channel_norm<float>(pass.args.gate.norm, c);
      mean[c] = norm.mean;
      bias[c] = norm.bias;
      return norm.scale;
    });
  }
  // The means of x become those of u = batch_norm(x).
  __device__ void before_gate() const {
    float* const mean = pass.mean();
    pass.x.each([&](int c) { mean[c] = of(c).normalized(mean[c]); });
  }
  // y = x * scale + shift, for the own channels.
  __device__ Affines<float> after_gate() const {
    float *const gate = pass.gate(), *const shift = array(1);
    pass.x.each([&](int c) {
      const ChannelNorm<float> norm = of(c);
      shift[c] = norm.shift() * gate[c];
      gate[c] *= norm.scale;
    });
    return {gate + pass.x.first, shift + pass.x.first};
  }
};

template <class Gate, class T, Walk W, bool kNorm>
__device__ __forceinline__ void run_forward(const OnePassArgs<ForwardCall>& args) {
  if constexpr (kHasOnePass) {
    using Pass = OnePass<T, W, ForwardCall>;
    using Slab = typename Pass::Slab;
    constexpr int N = Pass::N;
    const ForwardCall& call = args.call;
    const bool keeps_residual = args.plan.slabs.extra, relu = (args.problem.flags & kRelu) != 0;
    Pass pass(args);
    const OnePassNorm<Pass, kNorm> norm{pass};
    pass.template load<0>(Kept{call.x, true});
    pass.template load<1>(Kept{call.residual, keeps_residual});
    pass.prepare();
    norm.load();

    pass.template wait<0>();
    float* const mean = pass.mean();
    pass.sum(Pool<N, Slab>{{}, pass.slab(0)}, mean, static_cast<float>(args.problem.s));
    if (call.mean && pass.part == 0) {
      float* const means = static_cast<float*>(call.mean) + pass.n() * args.problem.c;
      pass.x.keep_each(means, [&](int c) { return mean[c]; });
    }
    norm.before_gate();
    Gate{args.gate.shape}.forward(pass.x, mean, pass.gate());

    const auto numbers = norm.after_gate();
    const Slab y = pass.template global<Slab>(call.y);
    if (relu || call.residual.data) {
      if (keeps_residual) pass.template wait<1>();
      const Slab residual = keeps_residual ? pass.slab(1) : pass.template global<Slab>(call.residual);
      const RescaleRelu rescale{residual.data != nullptr, relu};
      pass.visit(numbers, visit_of<N>(rescale, pass.slab(0), WithSigns<Slab>{y, signs_of(pass)}, residual));
    } else {
      pass.visit(numbers, visit_of<N>(Rescale(), pass.slab(0), y));
    }
  } else {
    __trap();
  }
}

// y = relu(x * Gate(mean(x)) + residual)
// Reads x and the residual, T[N, C, S], once, and the gate's parameters; writes y T[N, C, S] and, for backward, the
// means float[N, C] and the signs of y (problem.h). One cluster per sample.
template <class Gate, class T, Walk W>
__global__ void __launch_bounds__(kOnePassThreads, kOnePassBlocks)
    eca_forward_kernel(const __grid_constant__ OnePassArgs<ForwardCall> args) {
  run_forward<Gate, T, W, false>(args);
}

// y = relu(u * Gate(mean(u)) + residual), u = batch_norm(x) by given statistics.
// Reads and writes what eca_forward_kernel does, the means being those of x; also reads batch norm's parameters [C].
template <class Gate, class T, Walk W>
__global__ void __launch_bounds__(kOnePassThreads, kOnePassBlocks)
    eca_norm_forward_kernel(const __grid_constant__ OnePassArgs<ForwardCall> args) {
  run_forward<Gate, T, W, true>(args);
}

// grad_residual = [y > 0] grad_y with a ReLU, else grad_y;   dg = sum over S of grad_residual * x
// grad_x = grad_residual * g + dm / S,   where (g, dm) = Gate'(mean, dg)
// Reads grad_y and x, T[N, C, S], once, with a ReLU the signs of y, the means float[N, C] and the gate's parameters;
// writes grad_x and, if wanted, grad_residual, T[N, C, S], and the records of gates/gate.h. One cluster per sample.
template <class Gate, class T, Walk W>
__global__ void __launch_bounds__(kOnePassThreads, kOnePassBlocks)
    eca_backward_kernel(const __grid_constant__ OnePassArgs<BackwardCall> args) {
  if constexpr (kHasOnePass) {
    using Pass = OnePass<T, W, BackwardCall>;
    using Slab = typename Pass::Slab;
    using Far = typename Pass::Far;
    constexpr int N = Pass::N;
    const BackwardCall& call = args.call;
    const Slabs& slabs = args.plan.slabs;
    Pass pass(args);
    pass.template load<0>(Kept{call.grad_y, true}, Kept{call.x, slabs.second_sum});
    pass.template load<1>();
    pass.prepare();
    const Slab grad_y = pass.slab(0);
    float *const mean = pass.mean(), *const grad = pass.grad();
    pass.x.load_means(static_cast<const float*>(call.mean) + pass.n() * args.problem.c);

    // Where x has no slab, its first loads are issued before the wait for grad_y.
    const bool masks = call.signs.data != nullptr, later = !slabs.second_sum && !masks && (Pass::kRows || pass.bulk());
    if (!later) pass.template wait<0>();
    if (masks) {
      const Slab grad_residual = pass.template global<Slab>(call.grad_residual);
      pass.visit(Nothing(), visit_of<N>(Keep(), Masked<Slab>{grad_y, signs_of(pass)}, grad_y, {}, grad_residual));
      if (!Pass::kRows) __syncthreads();  // in rows, a thread adds up what it has masked
    }
    if (slabs.second_sum) {
      pass.sum(Dot<N, Slab, Slab>(grad_y, pass.slab(1)), grad, 1.f);
    } else {
      const Far x = pass.template global<Far>(call.x);
      const Arrival<Pass::kRows> arrival{later ? pass.loads() : nullptr};
      pass.sum(Dot<N, Slab, Far, Arrival<Pass::kRows>>(grad_y, x, arrival), grad, 1.f);
      if (later) pass.template wait<0>();  // for threads that had nothing to add up
    }
    Gate gate{args.gate.shape};
    gate.backward(pass.x, mean, pass.gate(), grad);

    const Slab grad_x = pass.template global<Slab>(call.grad_x);
    const Scaled shift{grad + pass.x.first, 1.f / static_cast<float>(args.problem.s)};
    pass.visit(Affines<float, Scaled>{pass.gate() + pass.x.first, shift}, visit_of<N>(Rescale(), grad_y, grad_x));
    if (pass.part == 0) {
      const Records& to = call.records;
      const int64_t block = pass.n() * pass.x.blocks + pass.x.block;
      gate.record(pass.x, {static_cast<float*>(to.sample) + pass.n() * to.sample_size,
                           static_cast<float*>(to.block) + block * to.block_size,
                           static_cast<float*>(to.channel) + pass.n() * args.problem.c});
    }
  } else {
    __trap();
  }
}

}  // namespace eca
