// SPDX-License-Identifier: MIT
// L0. The plan of the one-pass kernels: how many blocks share a sample, and the layout of their shared memory. The
// rules are fitted to measurements (docs/kernels.md).
#include <algorithm>
#include <cstdint>

#include "plan.h"

namespace eca {
namespace {

// In bytes:
constexpr int64_t kKB = 1024, kVector = 16;
constexpr int64_t kTwoBlocks = 110 * kKB;   // slabs of this size leave room for a second block
constexpr int64_t kWanted = 50 * kKB;       // all slabs of a block
constexpr int64_t kStrip = 25 * kKB;        // a slab, if it is a strip of rows
constexpr int64_t kFewestBytes = 10 * kKB;  // few samples do not cut slabs below this
constexpr int64_t kNarrow = 128;            // narrower strips share positions instead
constexpr int64_t kSector = 32;             // of memory
constexpr int64_t kPerThread = 200;         // of all slabs, or of one where planes are not small
constexpr int64_t kSmallPlane = 256;
// In threads or blocks:
constexpr int kFewestThreads = 64, kLonelyThreads = 256;  // the latter: most, where a block has a multiprocessor alone
constexpr int kFewBlocks = 7;                             // per two multiprocessors: too few to keep them busy
constexpr int kBlocks[] = {1, 2, 3, 4, 6, 8, 12, 16};     // of a cluster

int power_of_two_near(int64_t n) {
  int power = 1;
  while (3 * power <= 2 * n) power *= 2;
  return power;
}

struct Planner {
  const Request& r;
  const Device& d;
  const int64_t c = r.problem.c, s = r.problem.s, item = item_size(r.problem.dtype);
  const bool rows = r.problem.layout == Layout::kRows;
  int64_t unit = 1;  // the fewest channels that fill whole vectors: blocks have multiples of it

  Planner(const Request& request, const Device& device) : r(request), d(device) {
    while (unit * (rows ? 1 : s) * item % kVector) unit *= 2;
  }

  int64_t channels(int columns) const { return round_up(ceil_divide(c, columns), unit); }

  // Parts of the positions: more than one where strips would be narrow, or end within a sector.
  int parts_for(int blocks) const {
    int parts = 1;
    const auto strip = [&] { return channels(blocks / parts) * item; };
    while (rows && blocks / parts % 2 == 0 && (strip() < kNarrow || strip() % kSector)) parts *= 2;
    return rows && strip() < kNarrow ? blocks : parts;
  }

  // Whether every block has positions, and at least as many channels as the halo of its neighbours.
  bool can_share(int blocks, int parts) const {
    const int columns = blocks / parts;
    const int64_t last = c - channels(columns) * (columns - 1);
    return (columns == 1 || last >= std::max(r.half, 1)) && ceil_divide(s, parts) * (parts - 1) < s;
  }

  // The fewest blocks whose slabs are small enough; more where there are few samples.
  int blocks_wanted(int most) const {
    const int maps = 1 + (r.backward() || r.residual);
    const int64_t bytes = c * s * item;
    const int64_t all = std::min(kWanted, d.shared_per_multiprocessor * 7 / 16);  // leaves room for two blocks
    const int64_t wanted = std::min(all / maps, rows ? kStrip : all);
    const auto is_even = [&](int blocks) { return c % (blocks / parts_for(blocks)) == 0; };
    int chosen = 1;
    for (const int blocks : kBlocks) {
      if (blocks % 3 == 0 && blocks < most && !is_even(blocks) && is_even(blocks / 3 * 4)) continue;
      if (blocks > most || (bytes <= chosen * wanted && bytes < blocks * kFewestBytes)) break;
      if (!can_share(blocks, parts_for(blocks))) continue;
      chosen = blocks;
      const bool few = !r.batch_invariant && 2 * r.problem.n * blocks < kFewBlocks * int64_t{d.multiprocessors};
      if (bytes <= blocks * wanted && !few) break;
    }
    return chosen;
  }

  int threads_for(const OnePassPlan& p) const {
    const int64_t all = int64_t{p.slabs.bytes} * p.slabs.count;
    const bool by_slab = !rows && s * item >= kSmallPlane;
    int threads = power_of_two_near((by_slab ? p.slabs.bytes : all) / kPerThread);
    if (p.slabs.count > 1 && all > kTwoBlocks) threads = std::min(threads, kLonelyThreads);
    threads = std::clamp(threads, kFewestThreads, kOnePassThreads);
    while (rows && threads < kOnePassThreads && threads * kVector < p.channels * item) threads *= 2;
    while (threads > 32 && threads > d.max_threads) threads /= 2;
    return threads;
  }

  // Plans a given cut; false if it does not fit. threads: 0 for the rule's.
  bool cut(int blocks, int parts, int threads, Plan* plan) const {
    OnePassPlan& p = plan->one_pass;
    p = {};
    p.blocks = blocks;
    p.parts = parts;
    const int64_t own = channels(blocks / parts), positions = ceil_divide(s, parts);
    const int64_t slab = round_up(own * positions * item, 128);
    if (!can_share(blocks, parts) || slab > d.shared_opt_in) return false;
    p.channels = static_cast<int>(own);
    p.positions = static_cast<int>(positions);
    p.slabs.bytes = static_cast<int>(slab);
    p.straddle = !rows && unit > 1;
    p.bulk = !rows && d.capability >= 90;
    for (const bool second : {true, false}) {
      p.slabs.second_sum = second && r.backward();
      p.slabs.extra = second && !r.backward() && r.residual;
      p.slabs.count = 1 + p.slabs.second_sum + p.slabs.extra;
      if (p.slabs.extra && p.slabs.count * slab > kTwoBlocks) continue;  // the residual is streamed instead
      plan->threads = threads > 0 ? threads : threads_for(p);
      if (lay_out(plan->threads, &p)) return true;
    }
    return false;
  }

  // The layout of shared memory; false if there is no room.
  bool lay_out(int threads, OnePassPlan* p) const {
    const int vector = static_cast<int>(kVector / item), columns = p->blocks / p->parts;
    if (rows && p->channels / vector > threads) return false;
    if (!rows) p->lanes = lanes_for(p->channels, ceil_divide(s, vector) + p->straddle, threads);
    int64_t pushed = p->parts > 1 ? int64_t{p->parts} * p->channels : 0;
    for (const int count : r.needs.sums) pushed += columns > 1 ? int64_t{columns} * sums_of_block(count, columns) : 0;
    int64_t at = int64_t{p->slabs.bytes} * p->slabs.count;
    const auto take = [&](int64_t numbers) {
      const int64_t begin = at;
      at += round_up(numbers * 4, kVector);
      return static_cast<int>(begin);  // may overflow, if `at` is found too large below
    };
    p->shared.stride = static_cast<int>(round_up(p->channels + 2 * int64_t{r.half}, 4));
    p->shared.barriers = take(2 * (kLoads + kMaxExchanges));
    p->shared.arrays = take((kernel_arrays(r.backward()) + r.needs.arrays) * int64_t{p->shared.stride});
    p->shared.numbers = take(r.numbers);
    p->shared.scratch = take(r.needs.scratch);
    p->shared.sums = take(pushed);
    p->shared.parts = take(partial_sums(r.problem, p->channels, p->lanes, vector, threads));
    p->shared.total = static_cast<int>(at);
    const int64_t by_shared = d.shared_per_multiprocessor / (at + kReserved);
    p->blocks_per_multiprocessor =
        static_cast<int>(std::min<int64_t>({by_shared, kOnePassThreads * kOnePassBlocks / threads, 32}));
    return at <= d.shared_opt_in;
  }

  bool choose(Plan* plan) const {
    const int most = std::min({d.most_blocks, r.most_blocks, kMostBlocks}), wanted = blocks_wanted(most);
    if (follow_choice(most, wanted, plan)) return true;
    for (const int blocks : kBlocks)
      if (blocks >= wanted && blocks <= most && cut(blocks, parts_for(blocks), 0, plan)) return true;
    return false;
  }

  // Plans what a tuning table or an experiment asks for; false if it asks for nothing, or that does not fit.
  bool follow_choice(int most, int wanted, Plan* plan) const {
    const Choice& wish = r.choice;
    if (wish.blocks <= 0 && wish.parts <= 0 && wish.threads <= 0) return false;
    const int blocks = wish.blocks > 0 ? wish.blocks : wanted;
    const int parts = wish.parts > 0 ? wish.parts : parts_for(blocks);
    const bool sensible = blocks <= most && blocks % parts == 0 && (parts == 1 || rows) &&
                          wish.threads <= std::min(kOnePassThreads, d.max_threads);
    return sensible && cut(blocks, parts, wish.threads, plan);
  }
};

}  // namespace

const char* plan_one_pass(const Request& r, const Device& d, Plan* plan) {
  const Problem& p = r.problem;
  if (r.choice.blocks < 0) return "the tuning table asks for the two-phase kernel";
  if (p.dtype == DType::kDouble) return "float64 is for checking gradients";
  if (d.capability < 80) return "one pass needs compute capability 8.0";
  if (p.s == 0) return "there is nothing to keep";
  if (!r.dense) return "a map has gaps, or samples that do not begin at multiples of 16 bytes";
  if (p.layout == Layout::kRows && p.c * item_size(p.dtype) % kVector) return "rows are no multiple of 16 bytes";
  if (p.c > INT32_MAX / 64 || p.s > INT32_MAX / 64 || p.n > INT32_MAX / kMostBlocks || r.numbers > INT32_MAX / 64)
    return "a sample or the batch is too large for a cluster for each sample";
  if (d.most_blocks == 1 && !r.batch_invariant && 2 * p.n < d.multiprocessors)
    return "too few samples to keep the multiprocessors busy with one block each";
  if (!Planner(r, d).choose(plan)) return "a sample does not fit the shared memory of its blocks";
  plan->path = Path::kOnePass;
  plan->reason = "a sample fits the shared memory of its blocks";
  plan->blocks = p.n * plan->one_pass.blocks;
  return nullptr;
}

}  // namespace eca
