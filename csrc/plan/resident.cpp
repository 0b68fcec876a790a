// SPDX-License-Identifier: MIT
// L0. See resident.h.
#include "resident.h"

#include <algorithm>
#include <cstdlib>

namespace eca {
namespace {

constexpr int kWarp = 32, kMaxThreads = 512;
constexpr int kThreadsPerMultiprocessor = 1024;  // what 64 registers each leave
constexpr int kBlocksPerMultiprocessor = 32;
constexpr int64_t kMostBlocks = 0x7fffffff;  // of a grid
constexpr int64_t kCopyBytes = 16;           // bulk copies: addresses and sizes
constexpr int kMostVectors = 128;            // of a group of planes that one thread adds up
constexpr int kFewestGroups = 64;            // of a block, or its threads would wait for too few of them

// Times in microseconds and rates for choosing among plans: shared/KERNELS.md section 9, never measured.
constexpr double kLaunch = 4.1, kCluster = 0.6, kLargeCluster = 0.2, kBackward = 2.5;
constexpr double kSharedPlanes = 1.03;  // where vectors straddle planes: threads that share one instead of groups
constexpr double kHiddenRound = 0.3, kOpenRound = 1.0;
constexpr double kRatePerMultiprocessor = 65e9, kAssumedRate = 23e9, kCacheRate = 42e9;

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t align(int64_t n, int64_t to) { return ceil_divide(n, to) * to; }

struct Shape {
  int64_t runs, length, item;  // of a sample: planes of S or rows of C elements

  // The fewest runs whose bytes are a multiple of what bulk copies move.
  int granule() const {
    int n = 1;
    while (n * length * item % kCopyBytes) n *= 2;
    return n;
  }
};

// One warp for the smallest slabs: then as many samples as possible are under way on a multiprocessor.
int threads_for(int64_t slab_bytes, const Device& d) {
  const int64_t kB = 1024;
  int threads = slab_bytes > 48 * kB ? kMaxThreads : slab_bytes > 12 * kB ? 256 : slab_bytes > 3 * kB ? 128 : kWarp;
  while (threads > kWarp && threads > d.max_threads) threads /= 2;
  return threads;
}

// As many lanes per plane as keep all threads busy, but not more than there are vectors in it.
int lanes_for(int64_t planes, int64_t vectors, int threads) {
  int lanes = threads;
  while (lanes > 1 && (planes * lanes > 2 * threads || lanes > vectors)) lanes /= 2;
  return lanes;
}

// Straddling planes: threads that share one. None if each thread can have groups of planes of its own: their vectors
// are an odd number, so that neighbours read different banks of shared memory.
// streams: a map is read from global memory, and so by as many threads as possible.
int straddling_lanes(const ResidentPlan& plan, int64_t length, bool streams) {
  const int64_t vectors = plan.group * length / plan.vector;
  if (streams) return lanes_for(plan.runs, length / plan.vector + 1, plan.threads);
  if (vectors % 2 && vectors <= kMostVectors && plan.runs / plan.group >= std::min(kFewestGroups, plan.threads / 4))
    return 0;
  return lanes_for(plan.runs, length / plan.vector + 1, plan.threads);
}

// Fills plan.shared; whether it fits.
bool lay_out(const ResidentRequest& r, const Device& d, ResidentPlan* plan) {
  const Problem& p = r.request.problem;
  const bool rows = p.layout == Layout::kRows, backward = r.request.direction == Direction::kBackward;
  const int64_t gathered = backward ? 2 * p.c : p.c;
  const int64_t exchanged = r.exchanges.padded + plan->ranks * r.exchanges.per_block +
                            (rows ? plan->ranks * int64_t{plan->channels} + gathered : 0);
  const int64_t parts = rows              ? int64_t{plan->threads} * plan->vector
                        : plan->lanes > 0 ? plan->runs * std::max(1, plan->lanes / kWarp)
                                          : 0;
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at += bytes;
    return static_cast<int>(begin);  // wrong if `at` is too large, which is found out below
  };
  ResidentLayout& shared = plan->shared;
  shared.barriers = take(8 * (2 * kMaxExchanges + plan->stages * kMaxPieces));
  shared.part = take(48);
  shared.warps = take(4 * kWarp);
  shared.numbers = take((backward ? 3 : 2) * 4 * int64_t{plan->channels});
  shared.exchanges = take((plan->ranks > 1 ? 2 : 1) * 4 * exchanged);
  shared.scratch = shared.parts = take(std::max(4 * r.request.gate_scratch, 4 * parts + (rows ? 4 * p.c : 0)));
  shared.partial = static_cast<int>(shared.parts + 4 * parts);
  shared.kept = take(4 * int64_t{plan->kept_rows} * plan->channels);
  at = align(at, 128);
  shared.slabs = take(int64_t{plan->stages} * (plan->parked ? 2 : 1) * plan->slab_bytes);
  if (at > d.shared_opt_in) return false;
  shared.total = static_cast<int>(at);
  plan->exchange_numbers = static_cast<int>(exchanged);
  return true;
}

// The batch that a plan is made for.
int64_t samples(const ResidentRequest& r, const Device& d) {
  return r.batch_invariant ? d.multiprocessors : r.request.problem.n;
}

// How many clusters run at once.
int64_t resident_clusters(const ResidentPlan& plan, const Device& d) {
  const int64_t fit =
      std::min<int64_t>({d.shared_per_multiprocessor / (plan.shared.total + kReserved), kBlocksPerMultiprocessor,
                         std::min(kThreadsPerMultiprocessor, d.threads_per_multiprocessor) / plan.threads});
  const int64_t known = d.clusters[fit > 1][plan.ranks], most = fit * d.multiprocessors / plan.ranks;
  return plan.ranks == 1 || known == 0 ? most : std::min(most, fit > 1 ? known * fit / 2 : known);
}

// Of n samples.
double time_of(const ResidentRequest& r, const ResidentPlan& plan, int64_t n, const Device& d) {
  const Problem& p = r.request.problem;
  const bool backward = r.request.direction == Direction::kBackward;
  const double rate = d.copy_rate > 0 ? d.copy_rate : kAssumedRate * d.multiprocessors;
  const int64_t runs = p.layout == Layout::kRows ? p.s : p.c;
  const double sample = static_cast<double>(maps_moved(r.request) * p.c * p.s * item_size(p.dtype));
  const auto at = [&](int64_t clusters) {
    const int64_t blocks = clusters * std::min<int64_t>(plan.ranks, ceil_divide(runs, plan.runs));  // with work
    const double busy = static_cast<double>(std::min<int64_t>(d.multiprocessors, blocks));
    return std::min(rate, busy * kRatePerMultiprocessor);
  };
  const int64_t resident = resident_clusters(plan, d);
  const int64_t full = n / resident, rest = n % resident, rounds = full + (rest > 0);
  double us = kLaunch + (plan.ranks > 1 ? kCluster : 0) + (plan.ranks > 8 ? kLargeCluster : 0);
  us += backward ? kBackward : 0;
  us += static_cast<double>(full * resident) * sample / at(resident) * 1e6;
  us += rest ? static_cast<double>(rest) * sample / at(rest) * 1e6 : 0;
  const double weights = 4.0 * r.weights.rows * static_cast<double>(p.c) / (kCacheRate * d.multiprocessors) * 1e6;
  const int64_t times_kept = plan.persistent ? std::min(n, resident) : n;
  us += weights * static_cast<double>(plan.kept_rows > 0 ? times_kept : n * (backward ? 2 : 1));
  us += static_cast<double>(rounds - 1) * (plan.stages > 1 ? kHiddenRound : kOpenRound);
  return plan.straddle && plan.lanes > 0 ? kSharedPlanes * us : us;
}

// The best plan with this many blocks to a sample, if there is one, keeping the gate's largest parameter or not.
void consider(const ResidentRequest& r, const Device& d, const Shape& shape, int ranks, bool keep, ResidentPlan* best) {
  const Problem& p = r.request.problem;
  const bool rows = p.layout == Layout::kRows, backward = r.request.direction == Direction::kBackward;
  ResidentPlan plan = *best;
  plan.ranks = ranks;
  const int64_t runs = align(ceil_divide(shape.runs, ranks), shape.granule());
  // A block without planes has no channels either; one without rows owns channels and their weights.
  if (!rows && runs * (ranks - 1) >= shape.runs) return;
  const int64_t bytes = std::min(runs, shape.runs) * shape.length * shape.item;
  if (bytes > d.shared_opt_in || p.c > d.shared_opt_in) return;
  plan.runs = static_cast<int>(runs);
  plan.channels = rows ? static_cast<int>(ceil_divide(p.c, ranks)) : plan.runs;
  plan.kept_rows = keep ? r.weights.rows : 0;
  plan.kept_parameter = keep ? r.weights.parameter : 0;
  plan.slab_bytes = static_cast<int>(align(bytes, 128));
  plan.piece_shift = 12;
  while (plan.slab_bytes > kMaxPieces << plan.piece_shift || 1 << plan.piece_shift < r.choice.piece) ++plan.piece_shift;
  plan.threads = r.choice.threads ? r.choice.threads : threads_for(bytes, d);
  if (plan.threads > d.max_threads) return;
  plan.group = shape.granule();
  plan.lanes = rows            ? 1
               : plan.straddle ? straddling_lanes(plan, p.s, backward && !plan.parked)
                               : lanes_for(plan.runs, p.s / plan.vector, plan.threads);
  if (r.choice.lanes) {
    const bool groups = plan.straddle && (plan.parked || !backward);
    if (rows || r.choice.lanes > plan.threads || (r.choice.lanes < 0 && !groups)) return;
    plan.lanes = std::max(r.choice.lanes, 0);
  }
  const int most_stages = plan.persistent ? kMaxStages : 1;
  for (plan.stages = 1; plan.stages <= most_stages; ++plan.stages) {
    if (!lay_out(r, d, &plan)) return;
    const int64_t resident = resident_clusters(plan, d);
    if (resident < 1) return;
    plan.clusters = plan.persistent ? std::min(p.n, resident) : p.n;
    if (plan.clusters * ranks > kMostBlocks) return;
    plan.predicted_us = time_of(r, plan, samples(r, d), d);
    const bool wanted = !r.choice.stages || plan.stages == r.choice.stages;
    if (wanted && (!best->possible || plan.predicted_us < best->predicted_us)) {
      *best = plan;
      best->possible = true;
    }
    if (!r.choice.stages && plan.stages >= ceil_divide(samples(r, d), resident))
      return;  // more slabs than samples to come
  }
}

const char* refusal(const ResidentRequest& r, const Device& d) {
  const Problem& p = r.request.problem;
  const int64_t vector = 16 / item_size(p.dtype);
  if (p.n == 0 || p.c == 0 || p.s == 0) return "there is nothing to keep";
  if (p.dtype == DType::kDouble) return "float64 is for checking gradients";
  if (d.capability < 80) return "asynchronous copies need compute capability 8.0";
  if (d.capability < 90 && 2 * samples(r, d) < d.multiprocessors)
    return "without thread-block clusters (compute capability 9.0), too few samples to keep the multiprocessors busy";
  if (r.choice.ranks < 0) return "the tuning table asks for the two-phase kernel";
  if (!r.dense) return "asynchronous copies need dense samples at 16-byte boundaries";
  if (p.layout == Layout::kPlanes && p.s < vector) return "planes are smaller than a vector";
  return nullptr;
}

ResidentPlan best_plan(const ResidentRequest& r, const Device& d) {
  const Problem& p = r.request.problem;
  ResidentPlan best{};
  best.reason = refusal(r, d);
  if (best.reason) return best;
  const bool rows = p.layout == Layout::kRows;
  const Shape shape{rows ? p.s : p.c, rows ? p.c : p.s, item_size(p.dtype)};
  const int widest = static_cast<int>(16 / shape.item);
  best.copies = d.capability < 90 ? Copies::kThreads : Copies::kBulk;
  best.straddle = !rows && p.s % widest != 0;
  best.vector = rows ? vector_of(p, r.request.alignment) : widest;
  best.shared_limit = d.shared_opt_in;
  best.evict_first = r.choice.evict_first ? std::max(r.choice.evict_first, 0) : kRead;
  best.persistent = r.choice.persistent >= 0;
  const int most_ranks = std::min(r.most_ranks, d.capability < 90 ? 1 : d.capability < 110 ? 16 : 8);
  const bool parks = best.straddle && r.request.direction == Direction::kBackward;
  for (best.parked = parks;; best.parked = false) {
    for (const int ranks : {1, 2, 3, 4, 6, 8, 12, 16}) {
      if (ranks > most_ranks || (r.choice.ranks && ranks != r.choice.ranks)) continue;
      consider(r, d, shape, ranks, false, &best);
      if (r.weights.rows > 0) consider(r, d, shape, ranks, true, &best);
    }
    if (best.possible || !best.parked) break;
  }
  if (!best.possible) {
    const int64_t part = std::min(align(ceil_divide(shape.runs, most_ranks), shape.granule()), shape.runs);
    const bool alone = part * shape.length * shape.item <= d.shared_opt_in;  // it would fit
    best.reason = alone             ? "a sample and the numbers of its channels do not fit into shared memory"
                  : most_ranks == 1 ? "a sample does not fit the shared memory of one block"
                  : most_ranks <= 8 ? "a sample does not fit the shared memory of 8 blocks"
                                    : "a sample does not fit the shared memory of 16 blocks";
  }
  const double floor = static_cast<double>(maps_moved(r.request) * p.n * p.c * p.s * shape.item);
  best.floor_us = d.copy_rate > 0 ? floor / d.copy_rate * 1e6 : 0;
  best.predicted_us = best.possible && d.copy_rate > 0 ? time_of(r, best, p.n, d) : 0;
  return best;
}

}  // namespace

bool batch_invariance() {
  static const bool wanted = [] {
    const char* const value = std::getenv("ECA_CUDA_BATCH_INVARIANT");
    return value && std::string(value) == "1";
  }();
  return wanted;
}

// A choice that does not fit is nobody's.
ResidentPlan make_resident_plan(const ResidentRequest& r, const Device& d) {
  const ResidentPlan chosen = best_plan(r, d);
  const Choice& c = r.choice;
  const bool chose = c.ranks || c.stages || c.threads || c.lanes || c.piece || c.evict_first || c.persistent;
  if (chosen.possible || c.ranks < 0 || !chose) return chosen;
  ResidentRequest free = r;
  free.choice = {};
  return best_plan(free, d);
}

std::string describe(const ResidentPlan& plan) {
  std::string text = "resident, " + std::to_string(plan.clusters) + " clusters of " + std::to_string(plan.ranks) +
                     " blocks of " + std::to_string(plan.threads) + " threads, " + std::to_string(plan.stages) +
                     " slabs of " + std::to_string(plan.slab_bytes) + " bytes, " + std::to_string(plan.shared.total) +
                     " bytes of shared memory";
  if (plan.kept_rows > 0) text += ", " + std::to_string(plan.kept_rows) + " rows of a parameter kept";
  return text;
}

}  // namespace eca
