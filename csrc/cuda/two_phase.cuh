// SPDX-License-Identifier: MIT
// L1. The kernels for every shape: in one launch, reduce all tiles of a sample, compute its gate, apply it to all
// tiles. The second read of a tile mostly hits the L2 cache.
//
// Blocks take tickets from a counter. A ticket is one visit of one tile. The first `lag` tickets are first visits, then
// second and first visits alternate, and the last `lag` tickets are second visits:
//
//   first visit   partial sums of the tile; the block that completes a sample computes its gate and sets its flag
//   second visit  waits for the flag of the sample, then writes the tile
//
// There is no deadlock, however few blocks run at a time and in whichever order: first visits never wait, and a second
// visit waits only for first visits with smaller tickets (lag is at least the number of tiles of a sample), which
// blocks that run have taken.
#pragma once
#include <cuda/atomic>

#include "../gates/registry.h"
#include "channels.cuh"
#include "maps.cuh"
#include "rows.cuh"

namespace eca {

// What a ticket stands for: the first or second visit of tile number `tile` of the batch.
struct Turn {
  bool first;
  int64_t tile;

  __device__ static Turn of(int64_t ticket, int64_t tickets, int64_t lag) {
    const int64_t tiles = tickets / 2;
    if (ticket < lag) return {true, ticket};
    if (ticket >= tickets - lag) return {false, ticket - tiles};
    const int64_t after = ticket - lag;
    return {after % 2 != 0, after % 2 != 0 ? lag + after / 2 : after / 2};
  }
};

// Calls f with the gate of the variant: here one kernel serves all of them.
template <class A, int V = 0, class F>
__device__ __forceinline__ void with_gate(Variant variant, const GateShape& shape, F f) {
  if (variant == static_cast<Variant>(V)) f(GateOf<static_cast<Variant>(V), A>{shape});
  if constexpr (V + 1 < kVariants) with_gate<A, V + 1>(variant, shape, f);
}

// What the passes share. ForwardPass and BackwardPass add reduce(n, tile, A* sums), gate(n, executor), apply(n, tile).
template <class T, Layout L, int N_, bool kStraddle, class Args_>
struct PassBase {
  using A = Accumulator<T>;
  using Args = Args_;
  using Channels = BlockChannels<A, int64_t>;
  using Map = Runs<T, int64_t, true>;
  using Tiles = std::conditional_t<L == Layout::kRows, Rows<A, N_>, Planes<A, N_, kStraddle>>;
  static constexpr int N = N_;
  const Args& args;

  struct Totals {
    A* to;
    __device__ void operator()(int c, const A (&total)[1]) const { to[c] = total[0]; }
  };

  __device__ Map map(const MapView& batch, int64_t n) const {
    return {batch.data ? static_cast<T*>(batch.data) + n * batch.sample_stride : nullptr, batch.run_stride};
  }
  __device__ SignBytes<T, int64_t> signs(int64_t n) const {
    const Signs& of = args.call.signs;
    return {of.data ? of.data + n * of.sample_stride : nullptr, L == Layout::kRows ? args.problem.c : args.problem.s};
  }
  template <class Term, class Out>
  __device__ void sums(const Tile& tile, const Term& term, const Out& out) const {
    Tiles::sums(tile, args.problem.s, args.plan.lanes, term, shared_at<A>(args.plan.shared.sums), out);
  }
  template <class Numbers, class Body>
  __device__ void visit(const Tile& tile, const Numbers& numbers, const Body& body) const {
    Tiles::each(tile, args.problem.s, numbers, body);
  }
  // Writes y of a tile.
  template <class Numbers>
  __device__ void rescale(int64_t n, const Tile& tile, const Numbers& numbers) const {
    const ForwardCall& call = args.call;
    const bool relu = (args.problem.flags & kRelu) != 0;
    const Map x = map(call.x, n), y = map(call.y, n);
    if (!std::is_same_v<Numbers, const A*> || relu ||
        call.residual.data) {  // one kind of visit with shifts: fewer registers
      const RescaleRelu rescale{call.residual.data != nullptr, relu};
      visit(tile, numbers, visit_of<N>(rescale, x, WithSigns<Map>{y, signs(n)}, map(call.residual, n)));
    } else {
      visit(tile, numbers, visit_of<N>(Rescale(), x, y));
    }
  }
  __device__ A* of_sample(A* numbers, int64_t n) const { return numbers + n * args.problem.c; }
  __device__ A* partial(int64_t n) const { return args.partial + n * args.plan.tiling.blocks * args.problem.c; }

  // The executor of a gate, in shared memory or, where the gate does not fit, in piece number `piece` of `memory`.
  __device__ Channels channels(bool backward, int64_t piece) const {
    const TwoPhasePlan& plan = args.plan;
    const GateShape& shape = args.gate_of.shape;
    A* const memory = plan.shared.gate < 0 ? args.memory + piece * plan.gate_numbers : shared_at<A>(plan.shared.gate);
    const int64_t stride = args.problem.c + 2 * shape.half();
    A* const few = memory + (kernel_arrays(backward) + args.gate_of.needs.arrays) * stride;
    return {args.gate_of, 0, args.problem.c, memory, stride, few, few + args.gate_of.numbers, kernel_arrays(backward)};
  }

  // The sum of a channel over all tiles, in their order.
  __device__ A total(const A* partials, int64_t c) const {
    A total = partials[c];
    for (int64_t b = 1; b < args.plan.tiling.blocks; ++b) total += partials[b * args.problem.c + c];
    return total;
  }
};

template <class T, Layout L, int N_, bool kStraddle>
struct ForwardPass : PassBase<T, L, N_, kStraddle, TwoPhaseArgs<Accumulator<T>, ForwardCall>> {
  using Base = PassBase<T, L, N_, kStraddle, TwoPhaseArgs<Accumulator<T>, ForwardCall>>;
  using Base::args;
  using Base::N;
  using typename Base::A;
  using typename Base::Channels;
  using typename Base::Map;
  using typename Base::Totals;
  static constexpr Direction kDirection = Direction::kForward;

  __device__ void reduce(int64_t n, const Tile& tile, A* out) const {
    this->sums(tile, Pool<N, Map>{{}, this->map(args.call.x, n)}, Totals{out});
  }
  __device__ void gate(int64_t n, Channels& x) const {
    const A* const partials = this->partial(n);
    A *const mean = x.kernel_array(0), *const gate = x.kernel_array(1), *const gates = this->of_sample(args.gate, n);
    A* const kept = args.call.mean ? static_cast<A*>(args.call.mean) + n * x.own : nullptr;
    A* const shifts = this->of_sample(args.shift, n);
    const NormParameters& norm = args.gate_of.norm;
    x.each([&](int64_t c) {
      mean[c] = this->total(partials, c) / static_cast<A>(args.problem.s);
      if (kept) kept[c] = mean[c];
      if (norm.var.data) mean[c] = channel_norm<A>(norm, c).normalized(mean[c]);
    });
    with_gate<A>(args.problem.variant, args.gate_of.shape, [&](auto of) { of.forward(x, mean, gate); });
    x.each([&](int64_t c) {
      gates[c] = gate[c];
      if (!norm.var.data) return;
      const ChannelNorm<A> of = channel_norm<A>(norm, c);
      gates[c] *= of.scale;
      shifts[c] = gate[c] * of.shift();
    });
  }
  __device__ void apply(int64_t n, const Tile& tile) const {
    const A *const gate = this->of_sample(args.gate, n), *const shift = this->of_sample(args.shift, n);
    if (args.gate_of.norm.var.data) return this->rescale(n, tile, Affines<A>{gate, shift});
    this->rescale(n, tile, gate);
  }
};

template <class T, Layout L, int N_, bool kStraddle>
struct BackwardPass : PassBase<T, L, N_, kStraddle, TwoPhaseArgs<Accumulator<T>, BackwardCall>> {
  using Base = PassBase<T, L, N_, kStraddle, TwoPhaseArgs<Accumulator<T>, BackwardCall>>;
  using Base::args;
  using Base::N;
  using typename Base::A;
  using typename Base::Channels;
  using typename Base::Map;
  using typename Base::Totals;
  static constexpr Direction kDirection = Direction::kBackward;

  __device__ void reduce(int64_t n, const Tile& tile, A* out) const {
    const BackwardCall& call = args.call;
    const Map grad_y = this->map(call.grad_y, n), x = this->map(call.x, n);
    if (call.signs.data) {
      this->sums(tile, Dot<N, Masked<Map>, Map>({grad_y, this->signs(n)}, x), Totals{out});
    } else {
      this->sums(tile, Dot<N, Map, Map>(grad_y, x), Totals{out});
    }
  }
  __device__ void gate(int64_t n, Channels& x) const {
    const BackwardCall& call = args.call;
    const Records& to = call.records;
    const A *const partials = this->partial(n), *const means = static_cast<const A*>(call.mean) + n * x.own;
    A *const mean = x.kernel_array(0), *const gate = x.kernel_array(1), *const grad = x.kernel_array(2);
    A *const gates = this->of_sample(args.gate, n), *const shifts = this->of_sample(args.shift, n);
    x.each([&](int64_t c) {
      mean[c] = means[c];
      grad[c] = this->total(partials, c);
    });
    const Record<A> record{static_cast<A*>(to.sample) + n * to.sample_size,
                           static_cast<A*>(to.block) + n * to.block_size, static_cast<A*>(to.channel) + n * x.own};
    with_gate<A>(args.problem.variant, args.gate_of.shape, [&](auto of) {
      of.backward(x, mean, gate, grad);
      of.record(x, record);
    });
    x.each([&](int64_t c) {
      gates[c] = gate[c];
      shifts[c] = grad[c] / static_cast<A>(args.problem.s);
    });
  }
  __device__ void apply(int64_t n, const Tile& tile) const {
    const BackwardCall& call = args.call;
    const Affines<A> numbers{this->of_sample(args.gate, n), this->of_sample(args.shift, n)};
    const Map grad_y = this->map(call.grad_y, n), grad_x = this->map(call.grad_x, n);
    if (call.signs.data) {
      const Masked<Map> masked{grad_y, this->signs(n)};
      this->visit(tile, numbers, visit_of<N>(RescaleMasked(), masked, grad_x, {}, this->map(call.grad_residual, n)));
    } else {
      this->visit(tile, numbers, visit_of<N>(Rescale(), grad_y, grad_x));
    }
  }
};

// Counters and flags of the grid: relaxed for tickets, acquire and release where blocks hand data to each other.
template <class T>
using Shared = cuda::atomic_ref<T, cuda::thread_scope_device>;

template <class Pass>
__device__ void run_two_phase(const typename Pass::Args& args) {
  using A = typename Pass::A;
  const Pass pass{{args}};
  const TwoPhasePlan& plan = args.plan;
  struct Ticket {
    long long number;
    int completes_sample;
  };
  Ticket* const taken = shared_at<Ticket>(plan.shared.ticket);
  const unsigned tiles = static_cast<unsigned>(plan.tiling.count);

  for (;;) {
    // All threads have read the last ticket: every visit has a barrier behind that.
    if (threadIdx.x == 0)
      taken->number = Shared<unsigned long long>(*args.next_ticket).fetch_add(1, cuda::memory_order_relaxed);
    __syncthreads();
    const int64_t ticket = taken->number;
    if (ticket >= plan.tickets) return;
    const Turn turn = Turn::of(ticket, plan.tickets, plan.lag);
    const int64_t n = turn.tile / plan.tiling.count, i = turn.tile % plan.tiling.count;
    const Tile tile = plan.tiling.at(i);
    const Shared<unsigned> arrived(args.arrived[n]);
    if (turn.first) {
      pass.reduce(n, tile, pass.partial(n) + plan.tiling.block(i) * args.problem.c + tile.c0);
      if (threadIdx.x == 0) taken->completes_sample = arrived.fetch_add(1, cuda::memory_order_acq_rel) + 1 == tiles;
      __syncthreads();
      if (taken->completes_sample) {
        // `memory` has a piece per sample or per block, whichever are fewer.
        typename Pass::Channels x = pass.channels(Pass::kDirection == Direction::kBackward,
                                                  args.problem.n < gridDim.x ? n : int64_t{blockIdx.x});
        x.load_numbers();
        pass.gate(n, x);
        if (threadIdx.x == 0) arrived.store(tiles + 1, cuda::memory_order_release);
      }
    } else {
      if (threadIdx.x == 0)
        while (arrived.load(cuda::memory_order_acquire) <= tiles) __nanosleep(64);
      __syncthreads();
      pass.apply(n, tile);
    }
  }
}

// y = relu(u * Gate(mean(u)) + residual), u being x or, with batch norm by given statistics, batch_norm(x).
// Maps are T[N, C, S] with any strides between samples and runs. Reads x twice, the residual and the parameters once;
// writes y and, for backward, the means of x, A[N, C], and, in vectors of 16 bytes, the signs of y (problem.h).
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kForward))
    eca_two_phase_forward_kernel(const __grid_constant__ TwoPhaseArgs<Accumulator<T>, ForwardCall> args) {
  run_two_phase<ForwardPass<T, L, N, kStraddle>>(args);
}

// Computes what eca_backward_kernel (one_pass.cuh) does, for maps T[N, C, S] with any strides between samples and runs.
// Reads grad_y and, with a ReLU, the signs of y twice, x, the means A[N, C] and the parameters once; writes grad_x and,
// if wanted, grad_residual, T[N, C, S], and the records of gates/gate.h.
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kBackward))
    eca_two_phase_backward_kernel(const __grid_constant__ TwoPhaseArgs<Accumulator<T>, BackwardCall> args) {
  run_two_phase<BackwardPass<T, L, N, kStraddle>>(args);
}

}  // namespace eca
