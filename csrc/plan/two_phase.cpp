// SPDX-License-Identifier: MIT
// L0. The plan of the two-phase kernels: tiles and tickets. docs/decisions.md says where the numbers come from.
#include <algorithm>

#include "plan.h"

namespace eca {
namespace {

constexpr int64_t kMostThreads = 256;
constexpr int64_t kMaxTileBytes = 32 << 10;
constexpr int64_t kMaxTileChannels = 1024;  // bounds the shared memory for sums
constexpr int64_t kMaxPartials = 256;       // partial sums of a channel, which one thread adds up
constexpr int64_t kLine = 128;              // bytes of a cache line

// The size of equal parts of `total`: at most `most`, then rounded up to a multiple of `unit`.
int64_t part_of(int64_t total, int64_t most, int64_t unit) {
  return round_up(ceil_divide(total, ceil_divide(total, most)), unit);
}

// Between the two visits of a tile, the grid visits about one tile per block, of all maps: these should fit half of the
// L2 cache. But each thread should have at least one vector of a tile.
int64_t tile_elements(const Request& r, const Device& d, int threads) {
  const int maps = r.backward() ? 3 + (r.relu() && r.residual) : 2 + r.residual;
  const int64_t passing = int64_t{two_phase_blocks(r.direction)} * d.multiprocessors * maps;
  return std::clamp<int64_t>(d.l2 / 2 / passing, 16 * threads, kMaxTileBytes) / item_size(r.problem.dtype);
}

// kRows: strips of whole cache lines, as wide as a tile of all positions allows but at least two lines, so that reads
// are coalesced and partial sums are few beside the tile.
Tiling tiling_of(const Problem& p, int vector, int threads, int64_t elements) {
  const int64_t c = p.c, s = std::max<int64_t>(p.s, 1), item = item_size(p.dtype);
  if (p.layout == Layout::kPlanes) {
    if (s <= elements) return Tiling::of(c, p.s, part_of(c, std::min(kMaxTileChannels, elements / s), 1), s);
    return Tiling::of(c, s, 1, part_of(s, std::max(elements, ceil_divide(s, kMaxPartials)), kLine / item));
  }
  const int64_t widest = s > 1 ? threads / 2 : threads;  // in vectors; few threads stay idle
  const int64_t line = std::min(kLine / (vector * item), widest), columns = ceil_divide(c, vector);
  const int64_t wanted = std::clamp(elements / s / vector, std::min(2 * line, widest), widest) / line * line;
  const int64_t channels = std::min(columns, part_of(columns, wanted, line)) * vector;
  const int64_t most = std::max({elements / channels, ceil_divide(s, kMaxPartials), int64_t{1}});
  return Tiling::of(c, p.s, channels, part_of(s, most, 1));
}

TwoPhaseLayout layout_of(const Request& r, const TwoPhasePlan& p, int threads, int blocks, const Device& d) {
  const int64_t a = r.problem.dtype == DType::kDouble ? 8 : 4, sums = 16;
  const int64_t partial = partial_sums(r.problem, p.tiling.channels, p.lanes, p.vector, threads);
  const int64_t gate_end = sums + p.gate_numbers * a, sums_end = sums + partial * a;
  const bool fits = gate_end <= std::min(d.shared_per_block, d.shared_per_multiprocessor / blocks - kReserved);
  return {0, sums, fits ? sums : -1, round_up(std::max(sums_end, fits ? gate_end : 0), 16)};
}

}  // namespace

void plan_two_phase(const Request& r, const Device& d, Plan* plan) {
  const Problem& p = r.problem;
  TwoPhasePlan& two = plan->two_phase;
  const int widest = static_cast<int>(16 / item_size(p.dtype));
  two.straddle = r.dense && p.layout == Layout::kPlanes && p.dtype != DType::kDouble && !r.aligned;
  two.vector = two.straddle || r.aligned ? widest : 1;
  plan->threads = 32;
  while (2 * plan->threads <= std::min<int64_t>(kMostThreads, d.max_threads)) plan->threads *= 2;
  two.tiling = tiling_of(p, two.vector, plan->threads, tile_elements(r, d, plan->threads));
  if (p.layout == Layout::kPlanes) {
    const int64_t positions = std::min(two.tiling.positions, std::max<int64_t>(p.s, 1));
    two.lanes =
        lanes_for(std::min(two.tiling.channels, p.c), ceil_divide(positions, two.vector) + two.straddle, plan->threads);
  }
  two.gate_numbers =
      (kernel_arrays(r.backward()) + r.needs.arrays) * (p.c + 2 * int64_t{r.half}) + r.numbers + r.needs.scratch;
  const int blocks = two_phase_blocks(r.direction);
  two.shared = layout_of(r, two, plan->threads, blocks, d);
  two.tickets = 2 * p.n * two.tiling.count;
  plan->path = Path::kTwoPhase;
  plan->blocks = std::min(two.tickets, int64_t{blocks} * d.multiprocessors);
  two.lag = std::min(p.n * two.tiling.count, two.tiling.count + plan->blocks);
}

}  // namespace eca
