// SPDX-License-Identifier: MIT
// L0. See resident.h.
#include "resident.h"

#include <algorithm>

namespace eca {
namespace {

constexpr int kWarp = 32, kMaxThreads = 512;
constexpr int kThreadsPerMultiprocessor = 1024;  // what 64 registers each leave
constexpr int kMaxStages = 4;
constexpr int64_t kReserved = 1024;        // bytes of shared memory that the driver takes per block
constexpr int64_t kCopyBytes = 16;         // bulk copies: addresses and sizes
constexpr int64_t kMaxSlab = 1000 * 1024;  // an mbarrier counts to 2^20 - 1

// Times in microseconds and rates for choosing among plans: shared/KERNELS.md section 9, never measured.
constexpr double kLaunch = 4.1, kCluster = 0.6, kLargeCluster = 0.2, kBackward = 2.5;
constexpr double kHiddenRound = 0.3, kOpenRound = 1.0;
constexpr double kRatePerMultiprocessor = 65e9, kAssumedRate = 23e9;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t n, int64_t to) { return ceil_divide(n, to) * to; }

struct Shape {
  int64_t runs, length, item;  // of a sample: planes of S or rows of C elements

  // The fewest runs whose bytes are a multiple of what bulk copies move.
  int64_t granule() const {
    int64_t n = 1;
    while (n * length * item % kCopyBytes) n *= 2;
    return n;
  }
};

int threads_for(int64_t slab_bytes, const Device& d) {
  int threads = slab_bytes > 48 * 1024 ? kMaxThreads : slab_bytes > 12 * 1024 ? 256 : 128;
  while (threads > kWarp && threads > d.max_threads) threads /= 2;
  return threads;
}

// As many lanes per plane as keep all threads busy, but not more than there are vectors in it.
int lanes_for(int64_t planes, int64_t vectors, int threads) {
  int lanes = threads;
  while (lanes > 1 && (planes * lanes > 2 * threads || lanes > vectors)) lanes /= 2;
  return lanes;
}

ResidentLayout layout_of(const ResidentRequest& r, const ResidentPlan& plan) {
  const Problem& p = r.request.problem;
  const bool rows = p.layout == Layout::kRows;
  const int64_t parts = rows ? int64_t{plan.threads} * plan.vector : plan.runs * std::max(1, plan.lanes / kWarp);
  ResidentLayout at{};
  at.warps = 8 * align(plan.stages + 2 * kMaxExchanges, 2);
  at.parts = at.warps + kWarp * 4;
  at.numbers = at.parts + 4 * parts;
  at.partial = at.numbers + 4 * 4 * plan.channels;
  at.exchanges = at.partial + (rows ? 4 * p.c : 0);
  at.scratch = at.exchanges + 2 * 4 * plan.exchange_numbers;
  at.slabs = align(at.scratch + 4 * r.request.gate_scratch, 128);
  at.total = at.slabs + plan.stages * plan.slab_bytes;
  return at;
}

double time_of(const ResidentRequest& r, const ResidentPlan& plan, int64_t resident, const Device& d) {
  const Problem& p = r.request.problem;
  const bool backward = r.request.direction == Direction::kBackward;
  const double rate = d.copy_rate > 0 ? d.copy_rate : kAssumedRate * d.multiprocessors;
  const double sample = static_cast<double>(maps_moved(r.request) * p.c * p.s * item_size(p.dtype));
  const auto at = [&](int64_t clusters) {
    const double busy = static_cast<double>(std::min<int64_t>(d.multiprocessors, clusters * plan.ranks));
    return std::min(rate, busy * kRatePerMultiprocessor);
  };
  const int64_t full = p.n / resident, rest = p.n % resident, rounds = full + (rest > 0);
  double us = kLaunch + (plan.ranks > 1 ? kCluster : 0) + (plan.ranks > 8 ? kLargeCluster : 0);
  us += backward ? kBackward : 0;
  us += static_cast<double>(full * resident) * sample / at(resident) * 1e6;
  us += rest ? static_cast<double>(rest) * sample / at(rest) * 1e6 : 0;
  return us + static_cast<double>(rounds - 1) * (plan.stages > 1 ? kHiddenRound : kOpenRound);
}

// The best plan with this many blocks to a sample, if there is one.
void consider(const ResidentRequest& r, const Device& d, const Shape& shape, int ranks, ResidentPlan* best) {
  const Problem& p = r.request.problem;
  const bool rows = p.layout == Layout::kRows;
  ResidentPlan plan = *best;
  plan.ranks = ranks;
  plan.runs = align(ceil_divide(shape.runs, ranks), shape.granule());
  if (plan.runs * (ranks - 1) >= shape.runs) return;  // a block without work
  plan.channels = rows ? ceil_divide(p.c, ranks) : plan.runs;
  const int64_t bytes = std::min(plan.runs, shape.runs) * shape.length * shape.item;
  if (bytes > kMaxSlab) return;
  plan.slab_bytes = align(bytes, 128);
  plan.threads = threads_for(bytes, d);
  plan.lanes = rows ? 1 : lanes_for(plan.runs, p.s / plan.vector, plan.threads);
  const int64_t gathered = r.request.direction == Direction::kForward ? p.c : 2 * p.c;
  plan.exchange_numbers = r.padded_numbers + ranks * r.sum_numbers + (rows ? ranks * plan.channels + gathered : 0);
  for (plan.stages = 1; plan.stages <= kMaxStages; ++plan.stages) {
    plan.shared = layout_of(r, plan);
    if (plan.shared.total > d.shared_opt_in) return;
    const int64_t fit =
        std::min<int64_t>(d.shared_per_multiprocessor / (plan.shared.total + kReserved),
                          std::min(kThreadsPerMultiprocessor, d.threads_per_multiprocessor) / plan.threads);
    const int64_t resident = fit * d.multiprocessors / ranks;
    if (resident < 1) return;
    plan.clusters = std::min(p.n, resident);
    plan.predicted_us = time_of(r, plan, resident, d);
    if (!best->possible || plan.predicted_us < best->predicted_us) {
      *best = plan;
      best->possible = true;
    }
    if (plan.stages >= ceil_divide(p.n, resident)) return;  // more slabs than samples to come
  }
}

const char* refusal(const ResidentRequest& r, const Device& d) {
  const Problem& p = r.request.problem;
  if (p.n == 0 || p.c == 0 || p.s == 0) return "there is nothing to keep";
  if (d.capability < 90) return "thread-block clusters need compute capability 9.0";
  if (p.dtype == DType::kDouble) return "float64 is for checking gradients";
  if (!r.dense) return "bulk copies need dense samples at 16-byte boundaries";
  return nullptr;
}

}  // namespace

ResidentPlan make_resident_plan(const ResidentRequest& r, const Device& d) {
  const Problem& p = r.request.problem;
  ResidentPlan best{};
  best.reason = refusal(r, d);
  if (best.reason) return best;
  const bool rows = p.layout == Layout::kRows;
  const Shape shape{rows ? p.s : p.c, rows ? p.c : p.s, item_size(p.dtype)};
  best.vector = vector_of(p, r.request.alignment);
  best.shared_limit = d.shared_opt_in;
  for (const int ranks : {1, 2, 3, 4, 6, 8, 12, 16}) {
    if (ranks <= r.most_ranks) consider(r, d, shape, ranks, &best);
  }
  if (!best.possible) best.reason = "a sample does not fit the shared memory of 16 blocks";
  const double floor = static_cast<double>(maps_moved(r.request) * p.n * p.c * p.s * shape.item);
  best.floor_us = d.copy_rate > 0 ? floor / d.copy_rate * 1e6 : 0;
  if (d.copy_rate <= 0) best.predicted_us = 0;
  return best;
}

std::string describe(const ResidentPlan& plan) {
  return "resident, " + std::to_string(plan.clusters) + " clusters of " + std::to_string(plan.ranks) + " blocks of " +
         std::to_string(plan.threads) + " threads, " + std::to_string(plan.stages) + " slabs of " +
         std::to_string(plan.slab_bytes) + " bytes, " + std::to_string(plan.shared.total) + " bytes of shared memory";
}

}  // namespace eca
