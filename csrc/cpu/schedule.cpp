// SPDX-License-Identifier: MIT
// L1. The skeleton that all variants share: reduce every tile, then the gate, then apply it to every tile.
//
// A sample is cut into tiles whose size depends on its shape alone, and partial sums are added in the order of the
// tiles, so the result does not depend on who computes what. Two ways to share the work:
//   by sample  a thread reduces and rescales one sample after the other, while it is still in that core's cache;
//              the second visit walks backwards, so that it starts with what was touched last
//   by tile    the threads share the tiles of a sample: small batches, and the last samples of a batch
#include "schedule.h"

#include <algorithm>
#include <memory>

#include "pages.h"

namespace eca {
namespace {

constexpr int64_t kSerialBelow = 32768;  // elements: less work than this is not worth waking a thread
constexpr int64_t kTileElements = 32768;
constexpr int64_t kRowsAtOnce = 8;  // a tile of rows is a multiple of what cpu/reduce.h adds up in registers

Tiling tiling_of(const Problem& p) {
  const int64_t c = std::max<int64_t>(p.c, 1);
  if (p.layout == Layout::kRows)
    return Tiling::of(p.c, p.s, c, std::max(kRowsAtOnce, kTileElements / c / kRowsAtOnce * kRowsAtOnce));
  if (p.s > kTileElements) return Tiling::of(p.c, p.s, 1, kTileElements);
  const int64_t s = std::max<int64_t>(p.s, 1);
  return Tiling::of(p.c, p.s, kTileElements / s, s);
}

// pass offers reduce(n, tile, sums), gate(n, work), apply(n, tile, work); work is the memory of one sample.
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

  const auto for_range = [&](int64_t count, auto body) {
    using Body = decltype(body);
    parallel.run(
        count, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); }, &body);
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
  if (whole > 0) for_range(whole, whole_samples);
  if (shared == 0) return;

  const std::unique_ptr<A[]> memory(new A[size * shared]);
  const auto work = [&](int64_t i) { return memory.get() + i * size; };
  for_range(shared * tiling.count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / tiling.count, t = i % tiling.count;
      pass.reduce(whole + n, tiling.at(t), sums(work(n), t));
    }
  });
  for_range(shared, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) gate(whole + n, work(n));
  });
  for_range(shared * tiling.count, [&](int64_t begin, int64_t end) {
    for (int64_t i = end; i-- > begin;) {
      const int64_t n = i / tiling.count;
      pass.apply(whole + n, tiling.at(i % tiling.count), work(n) + tiling.blocks * p.c);
    }
  });
}

Map sample(const Batch& batch, const Problem& p, int64_t n) {
  if (!batch.data) return {nullptr, 0};
  return {static_cast<char*>(batch.data) + n * batch.sample_stride * item_size(p.dtype), batch.run_stride};
}

bool is_streamed(const Batch& output, const Problem& p) {
  return goes_past_caches(output.data, p.n * p.c * p.s * item_size(p.dtype));
}

template <class A>
struct PassBase {
  const Problem& p;
  const GateCall& gate_call;
  const MapKernels& maps = kernels().maps[static_cast<int>(p.dtype)][static_cast<int>(p.layout)];
  const GateKernels& gates = kernels().gates[static_cast<int>(p.variant)][sizeof(A) == sizeof(double)];
};

template <class A>
struct ForwardPass : PassBase<A> {
  const ForwardCall& call;
  using PassBase<A>::p;
  const bool streaming = is_streamed(call.y, p);

  // After the partial sums: gate [C], then the gate's memory.
  int64_t work_size() const { return p.c + this->gate_call.memory; }
  void reduce(int64_t n, Tile tile, A* sums) const { this->maps.pool(sample(call.x, p, n), tile, sums); }
  void gate(int64_t n, A* sums, A* work) const {
    A* mean = call.mean ? static_cast<A*>(call.mean) + n * p.c : sums;
    for (int64_t c = 0; c < p.c; ++c) mean[c] = sums[c] / static_cast<A>(p.s);
    this->gates.forward(this->gate_call.args, work + p.c, mean, work);
  }
  void apply(int64_t n, Tile tile, A* work) const {
    this->maps.rescale({sample(call.x, p, n), sample(call.residual, p, n), sample(call.y, p, n), work,
                        (p.flags & kRelu) != 0, streaming},
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
    this->maps.dot(sample(call.grad_y, p, n), sample(call.x, p, n), sample(call.y, p, n), tile, sums);
  }
  void gate(int64_t n, A* sums, A* work) const {
    A* const grad = work + p.c;
    const Records& to = call.records;
    std::copy_n(sums, p.c, grad);
    this->gates.backward(this->gate_call.args, work + 2 * p.c, static_cast<const A*>(call.mean) + n * p.c, work, grad,
                         static_cast<A*>(to.sample) + n * to.sample_size, static_cast<A*>(to.block) + n * to.block_size,
                         static_cast<A*>(to.field) + n * p.c);
    for (int64_t c = 0; c < p.c; ++c) grad[c] /= static_cast<A>(p.s);
  }
  void apply(int64_t n, Tile tile, A* work) const {
    this->maps.gradient({sample(call.grad_y, p, n), sample(call.y, p, n), sample(call.grad_x, p, n),
                         sample(call.grad_residual, p, n), work, work + p.c, streaming},
                        tile);
  }
};

template <template <class> class Pass, class Call>
void run(const Problem& p, const GateCall& gate, const Call& call, const Parallel& parallel) {
  if (p.n == 0 || p.c == 0) return;
  if (p.dtype == DType::kDouble) {
    Pass<double> pass{{p, gate}, call};
    run_samples<double>(p, parallel, pass);
  } else {
    Pass<float> pass{{p, gate}, call};
    run_samples<float>(p, parallel, pass);
  }
}

}  // namespace

void run_forward(const Problem& p, const GateCall& gate, const ForwardCall& call, const Parallel& parallel) {
  run<ForwardPass>(p, gate, call, parallel);
}
void run_backward(const Problem& p, const GateCall& gate, const BackwardCall& call, const Parallel& parallel) {
  run<BackwardPass>(p, gate, call, parallel);
}

}  // namespace eca
