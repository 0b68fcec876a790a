// SPDX-License-Identifier: MIT
// L1. The kernel that works for every shape: reduce all tiles of a sample, compute its gate, apply it to all tiles, in
// one launch. The second read of a tile is served by the L2 cache.
//
// Blocks take tickets from a counter. A ticket is one visit of one tile: the first `lag` tickets are first visits, then
// second and first ones take turns, and the second visits of the last tiles end it:
//
//   first visit   partial sums of the tile; the block that completes a sample computes its gate and raises its flag
//   second visit  waits for the flag of the sample, then writes the tile
//
// A first visit never waits. A second visit waits only for first visits with smaller tickets, which running blocks have
// taken (lag is at least the tiles of one sample). So this ends however few blocks run at a time, and in any order.
#pragma once
#include <cuda/atomic>

#include "gate.cuh"
#include "maps.cuh"
#include "two_phase_args.h"
#include "walk.cuh"

namespace eca {

// A ticket's visit: tile number `tile` of the batch, for the first or the second time.
struct Visit {
  bool first;
  int64_t tile;

  __device__ static Visit of(int64_t ticket, int64_t tickets, int64_t lag) {
    const int64_t tiles = tickets / 2;
    if (ticket < lag) return {true, ticket};
    if (ticket >= tickets - lag) return {false, ticket - tiles};
    const int64_t turn = ticket - lag;
    return {turn % 2 != 0, turn % 2 != 0 ? lag + turn / 2 : turn / 2};
  }
};

// What a pass knows besides the call. It offers reduce(n, tile, out), gate(n, executor) and apply(n, tile).
template <class T, Layout L, int N, class Call>
struct PassBase {
  using A = Accumulator<T>;
  using Args = TwoPhaseArgs<A, Call>;
  const Args& args;

  template <class Term>
  __device__ void sums(const Tile& tile, const Term& term, A* out) const {
    Reduce<A, L, N>::sums(tile, args.lanes, term, shared_at<A>(args.shared.sums), out);
  }
  __device__ A* of_sample(A* numbers, int64_t n) const { return numbers + n * args.problem.c; }
  __device__ A* partial(int64_t n) const { return args.partial + n * args.tiling.blocks * args.problem.c; }
};

template <class T, Layout L, int N>
struct ForwardPass : PassBase<T, L, N, ForwardCall> {
  using Base = PassBase<T, L, N, ForwardCall>;
  using A = typename Base::A;
  using Base::args;
  static constexpr Direction kDirection = Direction::kForward;

  __device__ void reduce(int64_t n, const Tile& tile, A* out) const {
    this->sums(tile, Pool<T, N, Map<T>>{Map<T>(args.call.x, n)}, out);
  }
  __device__ void gate(int64_t n, Channels<A>& x) const {
    A *const sums = this->partial(n), *const mean = this->of_sample(args.mean, n);
    add_partials(sums, x.count, args.tiling.blocks);
    for (int64_t c = threadIdx.x; c < x.count; c += blockDim.x) mean[c] = sums[c] / static_cast<A>(args.problem.s);
    gate_forward(args.problem.variant, args.gate_args, x, mean, this->of_sample(args.gate, n));
  }
  __device__ void apply(int64_t n, const Tile& tile) const {
    const ForwardCall& call = args.call;
    const A* const gate = this->of_sample(args.gate, n);
    const bool relu = (args.problem.flags & kRelu) != 0;
    if (relu || call.residual.data) {
      const RescaleRelu<T, N, Map<T>, Map<T>> body{Map<T>(call.x, n), Map<T>(call.residual, n), Map<T>(call.y, n),
                                                   relu};
      Walk<A, L, N>::each(tile, gate, Zeros<A>(), body);
    } else {
      Walk<A, L, N>::each(tile, gate, Zeros<A>(), Rescale<T, N, Map<T>, Map<T>>{Map<T>(call.x, n), Map<T>(call.y, n)});
    }
  }
};

template <class T, Layout L, int N>
struct BackwardPass : PassBase<T, L, N, BackwardCall> {
  using Base = PassBase<T, L, N, BackwardCall>;
  using A = typename Base::A;
  using Base::args;
  static constexpr Direction kDirection = Direction::kBackward;

  __device__ void reduce(int64_t n, const Tile& tile, A* out) const {
    const BackwardCall& call = args.call;
    const Dot<T, N, Map<T>, Map<T>, true> term{Map<T>(call.grad_y, n), Map<T>(call.x, n), Map<T>(call.y, n)};
    this->sums(tile, term, out);
  }
  __device__ void gate(int64_t n, Channels<A>& x) const {
    const BackwardCall& call = args.call;
    A *const sums = this->partial(n), *const shift = this->of_sample(args.shift, n);
    add_partials(sums, x.count, args.tiling.blocks);
    gate_backward(args.problem.variant, args.gate_args, x, static_cast<const A*>(call.mean) + n * x.count, sums,
                  this->of_sample(args.gate, n), shift, static_cast<A*>(call.record) + n * call.record_size,
                  static_cast<A*>(call.field) + n * x.count);
    x.each([&](int64_t c) { shift[c] /= static_cast<A>(args.problem.s); });
  }
  __device__ void apply(int64_t n, const Tile& tile) const {
    const BackwardCall& call = args.call;
    const Gradient<T, N, Map<T>, Map<T>, Map<T>> body{Map<T>(call.grad_y, n), Map<T>(call.y, n), Map<T>(call.grad_x, n),
                                                      Map<T>(call.grad_residual, n)};
    Walk<A, L, N>::each(tile, this->of_sample(args.gate, n), this->of_sample(args.shift, n), body);
  }
};

// The device-wide counters and flags: relaxed for tickets, acquire and release for what the blocks hand to each other.
template <class T>
using Shared = cuda::atomic_ref<T, cuda::thread_scope_device>;

template <class Pass>
__global__ void __launch_bounds__(256, resident_blocks(Pass::kDirection))
    two_phase(const __grid_constant__ typename Pass::Args args) {
  using A = typename Pass::A;
  const Pass pass{{args}};
  struct Turn {
    long long ticket;
    int completes_sample;
  };
  Turn* const turn = shared_at<Turn>(args.shared.ticket);
  const unsigned tiles = static_cast<unsigned>(args.tiling.count);

  for (;;) {
    // The turn before had a barrier after each use of shared memory but its last sums, which wait for the one below.
    if (threadIdx.x == 0)
      turn->ticket = Shared<unsigned long long>(*args.next_ticket).fetch_add(1, cuda::memory_order_relaxed);
    __syncthreads();
    const int64_t ticket = turn->ticket;
    if (ticket >= args.tickets) return;
    const Visit visit = Visit::of(ticket, args.tickets, args.lag);
    const int64_t n = visit.tile / args.tiling.count, i = visit.tile % args.tiling.count;
    const Tile tile = args.tiling.at(i);
    const Shared<unsigned> arrived(args.arrived[n]);
    if (visit.first) {
      pass.reduce(n, tile, pass.partial(n) + args.tiling.block(i) * args.problem.c + tile.c0);
      __syncthreads();
      if (threadIdx.x == 0) turn->completes_sample = arrived.fetch_add(1, cuda::memory_order_acq_rel) + 1 == tiles;
      __syncthreads();
      if (turn->completes_sample) {
        // In global memory, if shared memory is too small: a piece per sample or per block, whichever are fewer.
        const int64_t piece = args.problem.n < gridDim.x ? n : blockIdx.x;
        A* const memory =
            args.shared.gate < 0 ? args.memory + piece * args.gate_numbers : shared_at<A>(args.shared.gate);
        Channels<A> channels(args.problem.c, args.gate_args.kernel_size / 2, shared_at<A>(args.shared.warps), memory);
        pass.gate(n, channels);
        __syncthreads();
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

}  // namespace eca
