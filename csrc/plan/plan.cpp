// SPDX-License-Identifier: MIT
// L0. See plan.h. docs/decisions.md says where the numbers come from.
#include "plan.h"

#include <algorithm>

namespace eca {
namespace {

constexpr int kThreads = 256, kFewestThreads = 64;
constexpr int kWarp = 32, kWidestLoad = 16;  // bytes
constexpr int64_t kMaxTileBytes = 32 << 10;
constexpr int64_t kMaxTileChannels = 1024;  // bounds the shared memory for sums
constexpr int64_t kMaxPartials = 256;       // of a channel: one thread adds them up
constexpr int64_t kLine = 128;              // bytes of a cache line
constexpr int kFewestLanes = 4;             // of a plane: a warp reads from eight places at a time at most

// Times of the prediction, in microseconds, and its rates; KERNELS.md sections 8 and 9.
constexpr double kLaunch = 2.6, kPrepare = 1.5, kFlags = 1.0, kCombine = 2.0;
constexpr double kVisit = 2.0;                // of a tile by a block, however small the tile
constexpr double kTwoPhaseEfficiency = 0.85;  // of the copy rate
constexpr double kL2Rate = 42e9;              // bytes/s between L2 and each multiprocessor

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t bytes, int64_t to) { return ceil_divide(bytes, to) * to; }
int64_t power_of_two_at_most(int64_t n) {
  int64_t p = 1;
  while (p * 2 <= n) p *= 2;
  return p;
}
int64_t accumulator_size(DType dtype) { return dtype == DType::kDouble ? 8 : 4; }

int64_t power_of_two_in(int64_t n) { return n & -n; }

// The size of equal parts of `total`, at most `most` each but for rounding up to multiples of `unit`.
int64_t part_of(int64_t total, int64_t most, int64_t unit) {
  return align(ceil_divide(total, ceil_divide(total, most)), unit);
}

// The second phase reads again what the first one has read, less x in backward and plus the residual in forward.
int maps_read_again(const Request& r) {
  const bool relu = (r.problem.flags & kRelu) != 0;
  return r.direction == Direction::kForward ? 1 : 1 + relu;
}

int most_threads(const Device& d) {
  const int64_t most = std::min<int64_t>({kThreads, d.max_threads, d.threads_per_multiprocessor});
  return static_cast<int>(std::max<int64_t>(kWarp, power_of_two_at_most(most)));
}

// Between the two visits of a tile, the tiles of about one grid pass by, of all maps: they should fit half of the L2.
// But each thread should have something to load.
int64_t tile_elements(const Request& r, const Device& d) {
  const int64_t passing = int64_t{resident_blocks(r.direction)} * d.multiprocessors * maps_moved(r);
  return std::clamp<int64_t>(d.l2 / 2 / passing, kWidestLoad * most_threads(d), kMaxTileBytes) /
         item_size(r.problem.dtype);
}

// A visit of a small tile is all waiting, so samples smaller than a tile get more and smaller blocks: two vectors per
// thread.
int threads_of(const Problem& p, const Device& d, int vector, int64_t elements) {
  int threads = most_threads(d);
  const int64_t sample = p.c * p.s;
  if (sample == 0 || sample > elements) return threads;
  while (threads > kFewestThreads && sample < int64_t{2} * threads * vector) threads /= 2;
  return threads;
}

// Strips of whole cache lines, as wide as a tile of all positions allows but 256 bytes at least: neighbours in memory
// are read together, and the partial sums stay small beside the tile.
Tiling tiling_of_rows(const Problem& p, int vector, int threads, int64_t elements) {
  const int64_t c = std::max<int64_t>(p.c, 1), s = std::max<int64_t>(p.s, 1), columns = ceil_divide(c, vector);
  const int64_t widest = s > 1 ? threads / 2 : threads;  // so that few threads are left over
  const int64_t line = std::min(kLine / (vector * item_size(p.dtype)), widest);
  const int64_t wanted = std::clamp(elements / s / vector, std::min(2 * line, widest), widest) / line * line;
  const int64_t width = std::min(columns, part_of(columns, wanted, line)), channels = width * vector;
  const int64_t most = std::max({elements / channels, ceil_divide(s, kMaxPartials), int64_t{1}});
  return Tiling::of(p.c, p.s, channels, part_of(s, most, 1));
}

Tiling tiling_of(const Problem& p, int vector, int threads, int64_t elements) {
  if (p.layout == Layout::kRows) return tiling_of_rows(p, vector, threads, elements);
  if (p.s > elements) {
    const int64_t most = std::max(elements, ceil_divide(p.s, kMaxPartials));
    return Tiling::of(p.c, p.s, 1, part_of(p.s, most, kLine / item_size(p.dtype)));
  }
  const int64_t s = std::max<int64_t>(p.s, 1), most = std::min(kMaxTileChannels, elements / s);
  return Tiling::of(p.c, p.s, part_of(std::max<int64_t>(p.c, 1), most, 1), s);
}

// The lanes per plane that make a thread wait for the fewest loads, one after another; adding up the sums of the lanes
// takes as long as two.
int lanes_of(const Tiling& t, int vector, int threads) {
  const int64_t planes = std::min(t.channels, std::max<int64_t>(t.c, 1));
  const int64_t vectors = std::max<int64_t>(1, std::min(t.positions, t.s) / vector);
  int best = 1;
  int64_t least = INT64_MAX;
  for (int lanes = 1; lanes <= threads && lanes <= vectors; lanes *= 2) {
    if (lanes < kFewestLanes && 2 * lanes <= vectors) continue;
    const int64_t loads = ceil_divide(planes * lanes, threads) * (ceil_divide(vectors, lanes) + 2);
    if (loads < least) best = lanes;
    least = std::min(least, loads);
  }
  return best;
}

int blocks_per_multiprocessor(const Request& r, const Device& d, int threads) {
  return resident_blocks(r.direction) * (most_threads(d) / threads);
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
  const int64_t share = d.shared_per_multiprocessor / blocks_per_multiprocessor(r, d, plan.threads) / 16 * 16 - 1024;
  if (gate_end > std::min(d.shared_per_block, share)) layout.gate = -1;
  layout.total = align(std::max(layout.sums + sums * a, layout.gate < 0 ? 0 : gate_end), 16);
  return layout;
}

void predict(const Request& r, const Device& d, Plan& plan) {
  const Problem& p = r.problem;
  const Tiling& t = plan.tiling;
  const int64_t item = item_size(p.dtype), map = p.n * p.c * p.s * item, again = maps_read_again(r) * map;
  plan.floor_bytes = maps_moved(r) * map;
  plan.l2_bytes = plan.floor_bytes + again;
  // What does not fit the L2 between two visits is read from memory again. The numbers of the channels are written,
  // too: partial sums, and mean and gate or gate, shift and field.
  const int64_t passing = plan.lag * std::min(t.channels, t.c) * std::min(t.positions, t.s) * item * maps_moved(r);
  const double missed = passing > d.l2 ? 1 - static_cast<double>(d.l2) / static_cast<double>(passing) : 0;
  plan.memory_bytes = plan.floor_bytes + static_cast<int64_t>(missed * static_cast<double>(again)) +
                      p.n * p.c * (t.blocks + (r.direction == Direction::kForward ? 2 : 3)) * accumulator_size(p.dtype);
  if (d.copy_rate <= 0) return;
  plan.floor_us = static_cast<double>(plan.floor_bytes) / d.copy_rate * 1e6;
  const double memory = static_cast<double>(plan.memory_bytes) / (kTwoPhaseEfficiency * d.copy_rate) * 1e6;
  const double l2 = static_cast<double>(plan.l2_bytes) / (kL2Rate * d.multiprocessors) * 1e6;
  const double visits = kVisit * static_cast<double>(ceil_divide(plan.tickets, plan.blocks));
  const double fixed = kLaunch + kPrepare + kFlags + (r.direction == Direction::kBackward ? kCombine : 0);
  plan.predicted_us = fixed + std::max({memory, l2, visits});
}

}  // namespace

int maps_moved(const Request& r) {
  const bool relu = (r.problem.flags & kRelu) != 0;
  if (r.direction == Direction::kForward) return 2 + r.residual;
  return 3 + relu + (relu && r.residual);
}

int vector_of(const Problem& p, int64_t alignment) {
  for (const int elements : widths_of(p.dtype).elements)
    if (elements * item_size(p.dtype) <= alignment) return elements;
  return 1;
}

int64_t alignment_of(const Problem& p, const Batch& map) {
  if (!map.data) return 16;
  const int64_t e = item_size(p.dtype);
  const bool rows = p.layout == Layout::kRows;
  uint64_t all = 16 | reinterpret_cast<uintptr_t>(map.data) | static_cast<uint64_t>((rows ? p.c : p.s) * e);
  if (p.n > 1) all |= static_cast<uint64_t>(map.sample_stride * e);
  if ((rows ? p.s : p.c) > 1) all |= static_cast<uint64_t>(map.run_stride * e);
  return power_of_two_in(static_cast<int64_t>(all));
}

bool is_dense(const Problem& p, const Batch& map) {
  const int64_t e = item_size(p.dtype), length = p.layout == Layout::kRows ? p.c : p.s;
  const int64_t runs = p.layout == Layout::kRows ? p.s : p.c;
  const bool follow = runs == 1 || map.run_stride == length;
  const bool aligned = reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && p.c * p.s * e % 16 == 0;
  return follow && aligned && (p.n == 1 || map.sample_stride * e % 16 == 0);
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
  const int64_t elements = tile_elements(r, d);
  plan.vector = vector_of(p, r.alignment);
  plan.threads = threads_of(p, d, plan.vector, elements);
  plan.tiling = tiling_of(p, plan.vector, plan.threads, elements);
  plan.lanes = p.layout == Layout::kRows ? 1 : lanes_of(plan.tiling, plan.vector, plan.threads);
  plan.gate_numbers = 2 * (p.c + 2 * (r.kernel_size / 2)) + r.gate_scratch;
  plan.shared = shared_layout(r, plan, d);
  if (p.n == 0 || p.c == 0) {
    plan.path = Path::kNothing;
    plan.reason = p.n == 0 ? "no samples" : "no channels";
    return plan;
  }
  plan.path = Path::kTwoPhase;
  plan.reason = "for any shape, dtype and stride";
  plan.tickets = 2 * p.n * plan.tiling.count;
  plan.blocks = std::min(plan.tickets, int64_t{blocks_per_multiprocessor(r, d, plan.threads)} * d.multiprocessors);
  plan.lag = std::min(p.n * plan.tiling.count, plan.tiling.count + plan.blocks);
  predict(r, d, plan);
  return plan;
}

}  // namespace eca
