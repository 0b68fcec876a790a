// SPDX-License-Identifier: MIT
// L1. What the schedules of schedule.cpp and norm_schedule.cpp share: how a batch is cut, where its samples lie.
#pragma once
#include <algorithm>
#include <memory>

#include "pages.h"
#include "schedule.h"

namespace eca {

inline constexpr int64_t kSerialBelow = 32768;  // elements: less work than this runs on one thread
inline constexpr int64_t kTileElements = 32768;
inline constexpr int64_t kRowsAtOnce = 8;  // as in cpu/reduce.h: tiles have a multiple of it

inline Tiling tiling_of(const Problem& p) {
  const int64_t c = std::max<int64_t>(p.c, 1);
  if (p.layout == Layout::kRows)
    return Tiling::of(p.c, p.s, c, std::max(kRowsAtOnce, kTileElements / c / kRowsAtOnce * kRowsAtOnce));
  if (p.s > kTileElements) return Tiling::of(p.c, p.s, 1, kTileElements);
  const int64_t s = std::max<int64_t>(p.s, 1);
  return Tiling::of(p.c, p.s, kTileElements / s, s);
}

// Calls body(begin, end) for parts of [0, count), on all threads or, for few elements, on this one.
template <class Body>
void for_range(const Parallel& parallel, int64_t count, int64_t elements, Body body) {
  if (count == 0) return;
  if (parallel.threads == 1 || elements <= kSerialBelow) return body(int64_t{0}, count);
  parallel.run(
      count, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); }, &body);
}

inline SampleView sample(const MapView& batch, const Problem& p, int64_t n) {
  if (!batch.data) return {nullptr, 0};
  return {static_cast<char*>(batch.data) + n * batch.sample_stride * item_size(p.dtype), batch.run_stride};
}

inline SampleSigns sample(const Signs& signs, const Problem& p, int64_t n) {
  uint8_t* const data = signs.data ? signs.data + n * signs.sample_stride : nullptr;
  return {data, p.layout == Layout::kRows ? p.c : p.s};
}

// Zeroes the signs where packs may begin or end within a byte: store_signs then sets single bits.
inline void clear(const Signs& signs, const MapView& y, const Problem& p) {
  if (!signs.data) return;
  const bool whole = (p.layout == Layout::kRows ? p.c : p.s) % 16 == 0 &&
                     reinterpret_cast<uintptr_t>(y.data) % (16 * item_size(p.dtype)) == 0;
  if (!whole) std::fill_n(signs.data, p.n * signs.sample_stride, uint8_t{0});
}

inline bool is_streamed(const MapView& output, const Problem& p) {
  return goes_past_caches(output.data, p.n * p.c * p.s * item_size(p.dtype));
}

template <class A>
struct PassBase {
  const Problem& p;
  const GateCall& gate_call;
  const MapKernels& maps = kernels().maps[static_cast<int>(p.dtype)][static_cast<int>(p.layout)];
  const GateKernels& gates = kernels().gates[static_cast<int>(p.variant)][sizeof(A) == sizeof(double)];
};

// The gate's backward of sample n, with its records. grad holds dL/dgate before and dL/dmean after.
template <class A>
void backward_of_gate(const PassBase<A>& pass, const Records& to, int64_t n, const A* mean, A* gate, A* grad,
                      A* memory) {
  pass.gates.backward(pass.gate_call.args, memory, mean, gate, grad, static_cast<A*>(to.sample) + n * to.sample_size,
                      static_cast<A*>(to.block) + n * to.block_size, static_cast<A*>(to.channel) + n * pass.p.c);
}

}  // namespace eca
