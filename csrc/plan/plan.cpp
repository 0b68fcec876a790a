// SPDX-License-Identifier: MIT
// L0. See plan.h. docs/decisions.md says where the numbers come from.
#include "plan.h"

#include <algorithm>
#include <cmath>

namespace eca {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerMultiprocessor = 4;  // what the kernels' launch bounds promise
constexpr int kWarp = 32;
constexpr int64_t kMaxTileBytes = 32 << 10, kMinTileBytes = 2 << 10;
constexpr int64_t kMaxTileChannels = 1024;  // bounds the shared memory for sums

// Times of the prediction, in microseconds, and its rates; KERNELS.md sections 8 and 9.
constexpr double kLaunch = 2.6, kPrepare = 1.5, kFlags = 1.0, kCombine = 2.0;
constexpr double kTwoPhaseEfficiency = 0.85;  // of the copy rate
constexpr double kL2OverCopyRate = 1.8;       // what L2 moves, as a multiple of the copy rate

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t bytes, int64_t to) { return ceil_divide(bytes, to) * to; }
int64_t power_of_two_at_most(int64_t n) {
  int64_t p = 1;
  while (p * 2 <= n) p *= 2;
  return p;
}
int64_t accumulator_size(DType dtype) { return dtype == DType::kDouble ? 8 : 4; }

int64_t power_of_two_in(int64_t n) { return n & -n; }

int vector_of(const Problem& p, int64_t alignment) {
  for (const int elements : widths_of(p.dtype).elements)
    if (elements * item_size(p.dtype) <= alignment) return elements;
  return 1;
}

int threads_of(const Device& d) {
  const int64_t most = std::min<int64_t>({kThreads, d.max_threads, d.threads_per_multiprocessor});
  return static_cast<int>(std::max<int64_t>(kWarp, power_of_two_at_most(most)));
}

// All tiles in flight, those between their two visits included, should fit half of the L2 cache.
int64_t tile_elements(const Problem& p, const Device& d) {
  const int64_t in_flight = 4 * int64_t{kBlocksPerMultiprocessor} * d.multiprocessors;
  const int64_t bytes = std::clamp(power_of_two_at_most(d.l2 / in_flight), kMinTileBytes, kMaxTileBytes);
  return bytes / item_size(p.dtype);
}

Tiling tiling_of(const Problem& p, const Device& d, int vector, int threads) {
  const int64_t elements = tile_elements(p, d), s = std::max<int64_t>(p.s, 1);
  if (p.layout == Layout::kRows) {
    const int64_t channels = std::clamp<int64_t>(p.c, 1, int64_t{threads} * vector);
    return Tiling::of(p.c, p.s, channels, std::max<int64_t>(1, elements / channels));
  }
  if (s > elements) return Tiling::of(p.c, p.s, 1, elements);
  return Tiling::of(p.c, p.s, std::min(kMaxTileChannels, elements / s), s);
}

// As many lanes per plane as keep all threads busy, but not more than there are vectors in it.
int lanes_of(const Tiling& t, int vector, int threads) {
  const int64_t planes = std::min(t.channels, std::max<int64_t>(t.c, 1));
  const int64_t vectors = std::max<int64_t>(1, std::min(t.positions, t.s) / vector);
  int64_t lanes = threads;
  while (lanes > 1 && (planes * lanes > 2 * threads || lanes > vectors)) lanes /= 2;
  return static_cast<int>(lanes);
}

SharedLayout shared_layout(const Request& r, const Plan& plan, const Device& d) {
  const int64_t a = accumulator_size(r.problem.dtype);
  const int64_t parts = std::max(1, plan.lanes / kWarp);
  const int64_t sums = r.problem.layout == Layout::kRows ? int64_t{plan.threads} * plan.vector
                                                         : std::min(plan.tiling.channels, plan.tiling.c) * parts;
  SharedLayout layout{};
  layout.warps = 16;
  layout.sums = layout.gate = layout.warps + kWarp * a;
  const int64_t gate_end = layout.gate + plan.gate_numbers * a;
  const int64_t budget = std::min(d.shared_per_block, d.shared_per_multiprocessor / kBlocksPerMultiprocessor - 1024);
  if (gate_end > budget) layout.gate = -1;
  layout.total = align(std::max(layout.sums + sums * a, layout.gate < 0 ? 0 : gate_end), 16);
  return layout;
}

int maps_moved(const Request& r) {
  const bool relu = (r.problem.flags & kRelu) != 0;
  if (r.direction == Direction::kForward) return 2 + r.residual;
  return 3 + relu + (relu && r.residual);
}

// The second phase reads again what the first one has read, less x in backward and plus the residual in forward.
int maps_read_again(const Request& r) {
  const bool relu = (r.problem.flags & kRelu) != 0;
  return r.direction == Direction::kForward ? 1 : 1 + relu;
}

void predict(const Request& r, const Device& d, Plan& plan) {
  const Problem& p = r.problem;
  const int64_t map = p.n * p.c * p.s * item_size(p.dtype);
  plan.floor_bytes = maps_moved(r) * map;
  plan.l2_bytes = plan.floor_bytes + maps_read_again(r) * map;
  if (d.copy_rate <= 0) return;
  plan.floor_us = static_cast<double>(plan.floor_bytes) / d.copy_rate * 1e6;
  const double by_memory = plan.floor_us / kTwoPhaseEfficiency;
  const double by_l2 = static_cast<double>(plan.l2_bytes) / (kL2OverCopyRate * d.copy_rate) * 1e6;
  const double fixed = kLaunch + kPrepare + kFlags + (r.direction == Direction::kBackward ? kCombine : 0);
  plan.predicted_us = fixed + std::max(by_memory, by_l2);
}

}  // namespace

int64_t alignment_of(const Problem& p, const Batch& map) {
  if (!map.data) return 16;
  const int64_t e = item_size(p.dtype);
  const bool rows = p.layout == Layout::kRows;
  uint64_t all = 16 | reinterpret_cast<uintptr_t>(map.data) | static_cast<uint64_t>((rows ? p.c : p.s) * e);
  if (p.n > 1) all |= static_cast<uint64_t>(map.sample_stride * e);
  if ((rows ? p.s : p.c) > 1) all |= static_cast<uint64_t>(map.run_stride * e);
  return power_of_two_in(static_cast<int64_t>(all));
}

Widths widths_of(DType dtype) {
  if (dtype == DType::kDouble) return {{2, 1, 1}};
  if (dtype == DType::kFloat) return {{4, 1, 1}};
  return {{8, 4, 1}};
}

const char* variant_name(Variant variant) {
  constexpr const char* kNames[kVariants] = {"eca", "multi_kernel_eca", "bidirectional_eca"};
  return kNames[static_cast<int>(variant)];
}

std::string describe(const Plan& plan) {
  if (plan.path == Path::kNothing) return "nothing to do";
  return "two-phase, " + std::to_string(plan.blocks) + " blocks of " + std::to_string(plan.threads) + " threads, " +
         std::to_string(plan.tiling.count) + " tiles a sample, " + std::to_string(plan.shared.total) +
         " bytes of shared memory";
}

Plan make_plan(const Request& r, const Device& d) {
  const Problem& p = r.problem;
  Plan plan{};
  plan.vector = vector_of(p, r.alignment);
  plan.threads = threads_of(d);
  plan.tiling = tiling_of(p, d, plan.vector, plan.threads);
  plan.lanes = p.layout == Layout::kRows ? 1 : lanes_of(plan.tiling, plan.vector, plan.threads);
  plan.gate_numbers = 2 * (p.c + 2 * (r.kernel_size / 2)) + r.gate_scratch;
  plan.shared = shared_layout(r, plan, d);
  if (p.n == 0 || p.c == 0) {
    plan.path = Path::kNothing;
    plan.reason = p.n == 0 ? "no samples" : "no channels";
    return plan;
  }
  plan.path = Path::kTwoPhase;
  plan.reason = "the only path of this version";
  plan.tickets = 2 * p.n * plan.tiling.count;
  plan.blocks = std::min<int64_t>(plan.tickets, int64_t{kBlocksPerMultiprocessor} * d.multiprocessors);
  plan.lag = std::min(p.n * plan.tiling.count, plan.tiling.count + plan.blocks);
  predict(r, d, plan);
  return plan;
}

}  // namespace eca
