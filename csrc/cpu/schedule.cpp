// SPDX-License-Identifier: MIT
// L1. The skeleton of all variants: reduce every tile, compute the gate, then apply it to every tile.
//
// A sample is cut into tiles whose size depends on its shape alone, and partial sums are added in the order of the
// tiles, so the result does not depend on which thread computes a tile. Two ways to divide the work:
//   by sample  a thread reduces and rescales one sample after the other, while it is still in that core's cache;
//              the second visit walks backwards, so that it starts with the tiles touched last
//   by tile    the threads share the tiles of a sample: small batches, and the last samples of a batch
#include "batch.h"

namespace eca {
namespace {

// pass offers reduce(n, tile, sums), gate(n, sums, work), apply(n, tile, work); sums: A[C]; work: A[work_size()].
template <class A, class Pass>
void run_samples(const Problem& p, const Parallel& parallel, Pass& pass) {
  const Tiling tiling = tiling_of(p);
  const int64_t size = tiling.blocks * p.c + pass.work_size();
  const auto sums = [&](A* work, int64_t tile) { return work + tiling.block(tile) * p.c; };
  const auto gate = [&](int64_t n, A* work) {
    for (int64_t b = 1; b < tiling.blocks; ++b) {
      for (int64_t c = 0; c < p.c; ++c) work[c] += work[b * p.c + c];
    }
    pass.gate(n, work, work + tiling.blocks * p.c);
  };

  const auto whole_samples = [&](int64_t begin, int64_t end) {
    const std::unique_ptr<A[]> memory(new A[size]);
    A* work = memory.get();
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t t = 0; t < tiling.count; ++t) pass.reduce(n, tiling.at(t), sums(work, t));
      gate(n, work);
      for (int64_t t = tiling.count; t-- > 0;) pass.apply(n, tiling.at(t), work + tiling.blocks * p.c);
    }
  };

  const int64_t elements = p.c * p.s;
  if (parallel.threads == 1 || p.n * elements <= kSerialBelow) return whole_samples(0, p.n);
  const int64_t shared = elements > kSerialBelow && tiling.count > 1 ? p.n % parallel.threads : 0;
  const int64_t whole = p.n - shared;
  for_range(parallel, whole, elements * whole, whole_samples);
  if (shared == 0) return;

  const std::unique_ptr<A[]> memory(new A[size * shared]);
  const auto work = [&](int64_t i) { return memory.get() + i * size; };
  for_range(parallel, shared * tiling.count, elements, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiling.count, t = i % tiling.count;
      pass.reduce(whole + n, tiling.at(t), sums(work(n), t));
    }
  });
  for_range(parallel, shared, elements, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) gate(whole + n, work(n));
  });
  for_range(parallel, shared * tiling.count, elements, [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) {
      const int64_t n = i / tiling.count;
      pass.apply(whole + n, tiling.at(i % tiling.count), work(n) + tiling.blocks * p.c);
    }
  });
}

template <class A>
struct ForwardPass : PassBase<A> {
  const ForwardCall& call;
  const NormNumbers<A>* norm;
  using PassBase<A>::p;
  const bool streaming = is_streamed(call.y, p);

  // After the partial sums: gate [C], with a norm shift [C] and mean [C], then the gate's memory.
  int64_t work_size() const { return (norm ? 3 : 1) * p.c + this->gate_call.memory; }
  void reduce(int64_t n, Tile tile, A* sums) const { this->maps.pool(sample(call.x, p, n), tile, sums); }
  void gate(int64_t n, A* sums, A* work) const {
    A* mean = call.mean ? static_cast<A*>(call.mean) + n * p.c : sums;
    for (int64_t c = 0; c < p.c; ++c) mean[c] = sums[c] / static_cast<A>(p.s);
    if (!norm) return this->gates.forward(this->gate_call.args, work + p.c, mean, work);
    A *const shift = work + p.c, *const of_norm = shift + p.c;
    for (int64_t c = 0; c < p.c; ++c) of_norm[c] = norm->of(c, mean[c]);
    this->gates.forward(this->gate_call.args, of_norm + p.c, of_norm, work);
    norm->fold(p.c, work, shift);
  }
  void apply(int64_t n, Tile tile, A* work) const {
    this->maps.rescale({sample(call.x, p, n), sample(call.residual, p, n), sample(call.y, p, n),
                        sample(call.signs, p, n), work, norm ? work + p.c : nullptr, (p.flags & kRelu) != 0, streaming},
                       tile);
  }
};

template <class A>
struct BackwardPass : PassBase<A> {
  const BackwardCall& call;
  using PassBase<A>::p;
  const bool streaming = is_streamed(call.grad_x, p);

  // After the partial sums: gate [C], gradient of the means [C], then the gate's memory.
  int64_t work_size() const { return 2 * p.c + this->gate_call.memory; }
  void reduce(int64_t n, Tile tile, A* sums) const {
    this->maps.dot({sample(call.grad_y, p, n), sample(call.x, p, n), sample(call.signs, p, n), nullptr}, tile, sums);
  }
  void gate(int64_t n, A* sums, A* work) const {
    A* const grad = work + p.c;
    std::copy_n(sums, p.c, grad);
    const A* const mean = static_cast<const A*>(call.mean) + n * p.c;
    backward_of_gate<A>(*this, call.records, n, mean, work, grad, work + 2 * p.c);
    for (int64_t c = 0; c < p.c; ++c) grad[c] /= static_cast<A>(p.s);
  }
  void apply(int64_t n, Tile tile, A* work) const {
    this->maps.gradient({sample(call.grad_y, p, n),
                         {},
                         sample(call.grad_x, p, n),
                         sample(call.grad_residual, p, n),
                         sample(call.signs, p, n),
                         work,
                         work + p.c,
                         nullptr,
                         streaming},
                        tile);
  }
};

}  // namespace

template <class A>
void run_forward(const Problem& p, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>* norm,
                 const Parallel& parallel) {
  if (p.n == 0 || p.c == 0) return;
  clear(call.signs, call.y, p);
  ForwardPass<A> pass{{p, gate}, call, norm};
  run_samples<A>(p, parallel, pass);
}

template <class A>
void run_backward(const Problem& p, const GateCall& gate, const BackwardCall& call, const Parallel& parallel) {
  if (p.n == 0 || p.c == 0) return;
  BackwardPass<A> pass{{p, gate}, call};
  run_samples<A>(p, parallel, pass);
}

template void run_forward(const Problem&, const GateCall&, const ForwardCall&, const NormNumbers<float>*,
                          const Parallel&);
template void run_forward(const Problem&, const GateCall&, const ForwardCall&, const NormNumbers<double>*,
                          const Parallel&);
template void run_backward<float>(const Problem&, const GateCall&, const BackwardCall&, const Parallel&);
template void run_backward<double>(const Problem&, const GateCall&, const BackwardCall&, const Parallel&);

}  // namespace eca
