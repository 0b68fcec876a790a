// SPDX-License-Identifier: MIT
// L1. Batch norm and a gate behind it on the CPU (gates/norm.h), where statistics or their gradients need all samples
// before the first output:
//
//   forward    read x: mean and squares of each tile -> statistics -> gates -> read x, residual; write y, signs
//   backward   read grad_y, signs, x: two sums of each tile -> gates -> gradients of the norm
//              -> read grad_y, signs, x; write grad_x, grad_residual
//
// Sums over tiles and samples are added in their order.
#include "batch.h"

namespace eca {
namespace {

constexpr int64_t kChannelsAtOnce = 64;

// What the two directions share.
template <class A>
struct NormPass : PassBase<A> {
  const NormNumbers<A>& norm;
  const Parallel& parallel;
  using PassBase<A>::p;
  Tiling tiling = tiling_of(p);
  std::unique_ptr<A[]> partial{new A[p.n * tiling.blocks * 2 * p.c]};  // A[N, blocks, 2, C]

  NormPass(const Problem& problem, const GateCall& gate, const NormNumbers<A>& numbers, const Parallel& threads)
      : PassBase<A>{problem, gate}, norm(numbers), parallel(threads) {}

  A* sums(int64_t n, int64_t block) const { return partial.get() + (n * tiling.blocks + block) * 2 * p.c; }
  // Positions of a tile of that block.
  A count(int64_t block) const { return static_cast<A>(tiling.at(block).s1 - tiling.at(block).s0); }

  // backwards: each thread starts with the tile it touched last, which may still be in a cache.
  template <class Body>
  void each_tile(bool backwards, Body body) const {
    for_range(parallel, p.n * tiling.count, p.n * p.c * p.s, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = backwards ? end - 1 - (i - begin) : i;
        body(at / tiling.count, at % tiling.count);
      }
    });
  }
  template <class Body>
  void each_sample(Body body) const {
    for_range(parallel, p.n, p.n * p.c * p.s, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<A[]> memory(new A[this->gate_call.memory + 3 * p.c]);
      for (int64_t n = begin; n < end; ++n) body(n, memory.get());
    });
  }
  // body(c0, c1)
  template <class Body>
  void each_channels(Body body) const {
    const int64_t groups = (p.c + kChannelsAtOnce - 1) / kChannelsAtOnce;
    for_range(parallel, groups, p.n * p.c, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) body(g * kChannelsAtOnce, std::min(p.c, (g + 1) * kChannelsAtOnce));
    });
  }
};

// For channels c0 .. c1, from the means and centred squares of the tiles: means A[N, C] of the samples, norm.mean,
// norm.var.
template <class A>
void statistics(const NormPass<A>& pass, A* means, int64_t c0, int64_t c1) {
  const Problem& p = pass.p;
  const A positions = static_cast<A>(p.s), count = static_cast<A>(p.n) * positions;
  A *const mu = pass.norm.mean, *const var = pass.norm.var;
  std::fill(mu + c0, mu + c1, A(0));
  std::fill(var + c0, var + c1, A(0));
  for (int64_t n = 0; n < p.n; ++n) {
    A* const mean = means + n * p.c;
    for (int64_t c = c0; c < c1; ++c) {
      A total = A(0);
      for (int64_t b = 0; b < pass.tiling.blocks; ++b) total += pass.count(b) * pass.sums(n, b)[c];
      mean[c] = total / positions;
      mu[c] += mean[c];
    }
  }
  for (int64_t c = c0; c < c1; ++c) mu[c] /= static_cast<A>(p.n);
  for (int64_t n = 0; n < p.n; ++n) {
    for (int64_t b = 0; b < pass.tiling.blocks; ++b) {
      const A *const mean = pass.sums(n, b), *const squares = mean + p.c;
      for (int64_t c = c0; c < c1; ++c) var[c] += squares_about(squares[c], pass.count(b), mean[c] - mu[c]);
    }
  }
  for (int64_t c = c0; c < c1; ++c) var[c] /= count;
}

}  // namespace

template <class A>
void run_norm_forward(const Problem& p, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>& norm,
                      const Parallel& parallel) {
  const NormPass<A> pass(p, gate, norm, parallel);
  A* const means = static_cast<A*>(call.mean);
  clear(call.signs, call.y, p);
  pass.each_tile(false, [&](int64_t n, int64_t t) {
    A* const sums = pass.sums(n, pass.tiling.block(t));
    pass.maps.moments(sample(call.x, p, n), pass.tiling.at(t), sums, sums + p.c);
  });
  pass.each_channels([&](int64_t c0, int64_t c1) { statistics(pass, means, c0, c1); });
  const std::unique_ptr<A[]> numbers(new A[2 * p.n * p.c]);  // A[N, 2, C]: gate and shift
  pass.each_sample([&](int64_t n, A* memory) {
    A* const of_sample = numbers.get() + 2 * n * p.c;
    for (int64_t c = 0; c < p.c; ++c) memory[c] = norm.of(c, means[n * p.c + c]);
    pass.gates.forward(gate.args, memory + p.c, memory, of_sample);
    norm.fold(p.c, of_sample, of_sample + p.c);
  });
  const bool relu = (p.flags & kRelu) != 0, streaming = is_streamed(call.y, p);
  pass.each_tile(true, [&](int64_t n, int64_t t) {
    const A* const of_sample = numbers.get() + 2 * n * p.c;
    pass.maps.rescale({sample(call.x, p, n), sample(call.residual, p, n), sample(call.y, p, n),
                       sample(call.signs, p, n), of_sample, of_sample + p.c, relu, streaming},
                      pass.tiling.at(t));
  });
}

template <class A>
void run_norm_backward(const Problem& p, const GateCall& gate, const BackwardCall& call, const NormNumbers<A>& norm,
                       A* grad_weight, A* grad_bias, const Parallel& parallel) {
  const NormPass<A> pass(p, gate, norm, parallel);
  const A positions = static_cast<A>(p.s), count = static_cast<A>(p.n) * positions;
  const A* const means = static_cast<const A*>(call.mean);
  pass.each_tile(false, [&](int64_t n, int64_t t) {
    A* const sums = pass.sums(n, pass.tiling.block(t));
    pass.maps.dots({sample(call.grad_y, p, n), sample(call.x, p, n), sample(call.signs, p, n), norm.mean},
                   pass.tiling.at(t), sums, sums + p.c);
  });
  const std::unique_ptr<A[]> numbers(new A[2 * p.n * p.c + p.c]);  // A[N, 2, C]: gate and shift; slope A[C]
  A* const slope = numbers.get() + 2 * p.n * p.c;
  pass.each_sample([&](int64_t n, A* memory) {
    A *const sum = pass.sums(n, 0), *const product = sum + p.c, *const of_norm = memory, *const grad = memory + p.c;
    A *const gates = numbers.get() + 2 * n * p.c, *const shift = gates + p.c;
    for (int64_t b = 1; b < pass.tiling.blocks; ++b)
      for (int64_t c = 0; c < 2 * p.c; ++c) sum[c] += pass.sums(n, b)[c];
    for (int64_t c = 0; c < p.c; ++c) {
      of_norm[c] = norm[c].normalized(means[n * p.c + c]);
      grad[c] = norm[c].gate_gradient(sum[c], product[c]);
    }
    backward_of_gate<A>(pass, call.records, n, of_norm, gates, grad, memory + 2 * p.c);
    for (int64_t c = 0; c < p.c; ++c) {
      const ChannelNorm<A> of = norm[c];
      of.add_gate(gates[c], grad[c], means[n * p.c + c], &sum[c], &product[c]);
      gates[c] *= of.scale;
      shift[c] = of.scale * grad[c] / positions;
    }
  });
  const bool of_batch = (p.flags & kBatchStatistics) != 0;
  pass.each_channels([&](int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; ++c) {
      A sum = A(0), product = A(0);
      for (int64_t n = 0; n < p.n; ++n) {
        sum += pass.sums(n, 0)[c];
        product += pass.sums(n, 0)[p.c + c];
      }
      const NormGradients<A> grad = norm[c].gradients(sum, product, count, of_batch);
      grad_bias[c] = grad.bias;
      grad_weight[c] = grad.weight;
      slope[c] = grad.slope;
      for (int64_t n = 0; n < p.n; ++n) numbers[(2 * n + 1) * p.c + c] -= grad.common;
    }
  });
  const bool streaming = is_streamed(call.grad_x, p);
  pass.each_tile(true, [&](int64_t n, int64_t t) {
    const A* const gates = numbers.get() + 2 * n * p.c;
    pass.maps.gradient({sample(call.grad_y, p, n), of_batch ? sample(call.x, p, n) : SampleView{},
                        sample(call.grad_x, p, n), sample(call.grad_residual, p, n), sample(call.signs, p, n), gates,
                        gates + p.c, of_batch ? slope : nullptr, streaming},
                       pass.tiling.at(t));
  });
}

template void run_norm_forward(const Problem&, const GateCall&, const ForwardCall&, const NormNumbers<float>&,
                               const Parallel&);
template void run_norm_forward(const Problem&, const GateCall&, const ForwardCall&, const NormNumbers<double>&,
                               const Parallel&);
template void run_norm_backward(const Problem&, const GateCall&, const BackwardCall&, const NormNumbers<float>&, float*,
                                float*, const Parallel&);
template void run_norm_backward(const Problem&, const GateCall&, const BackwardCall&, const NormNumbers<double>&,
                                double*, double*, const Parallel&);

}  // namespace eca
