// SPDX-License-Identifier: MIT
// Plans for random problems on all devices, held against what the kernels do with them. tests/test_plan.py compiles
// this with the plan and nothing else. Everything is worked out anew here, from the sources of the kernels, not the
// plan's.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../csrc/plan/plan.h"

namespace {

using namespace eca;
using Wide = __int128;

// Devices that nobody sells: the least of everything, odd numbers, slices, and more of everything than there is yet.
const Device kStrange[] = {
    {"one multiprocessor", 90, 1, 1024, 2048, 48 << 10, 228 << 10, 50 << 20, 3e12, false},
    {"blocks of 32", 75, 7, 32, 1024, 48 << 10, 64 << 10, 4 << 20, 1e11, false},
    {"emulated", 90, 3, 64, 2048, 48 << 10, 228 << 10, 64 << 10, 0, false},
    {"no L2", 80, 108, 1024, 2048, 48 << 10, 164 << 10, 0, 1e12, false},
    {"odd", 86, 83, 768, 1536, 48 << 10, 100 << 10, 5 << 20, 7e11, false},
    {"slice", 80, 14, 1024, 2048, 48 << 10, 164 << 10, 5 << 20, 2e11, false},
    {"little shared memory", 75, 20, 1024, 1024, 16 << 10, 64 << 10, 1 << 20, 1e11, false},
    {"tomorrow", 150, 1021, 4096, 8192, 48 << 10, 512 << 10, int64_t{1} << 30, 1e14, false},
};

struct Context {
  const Request* request;
  const Device* device;
  const Plan* plan;
} context;

// How many plans were of each kind, so that a test can see that all kinds were met.
struct Met {
  long long plans, nothing, ordered, strips, partials, global_gates, small_blocks, lanes, scalar;
} met;

[[noreturn]] void fail(const char* what, int line) {
  const auto& [p, direction, residual, alignment, kernel_size, scratch] = *context.request;
  const Plan& plan = *context.plan;
  std::printf("line %d: %s\n", line, what);
  std::printf("n %lld c %lld s %lld dtype %d layout %d variant %d flags %lld %s residual %d alignment %lld k %lld\n",
              static_cast<long long>(p.n), static_cast<long long>(p.c), static_cast<long long>(p.s),
              static_cast<int>(p.dtype), static_cast<int>(p.layout), static_cast<int>(p.variant),
              static_cast<long long>(p.flags), direction == Direction::kForward ? "forward" : "backward", residual,
              static_cast<long long>(alignment), static_cast<long long>(kernel_size));
  std::printf("on %s: %s; vector %d lanes %d tile %lld x %lld partials %lld lag %lld tickets %lld scratch %lld\n",
              context.device->name, describe(plan).c_str(), plan.vector, plan.lanes,
              static_cast<long long>(plan.tiling.channels), static_cast<long long>(plan.tiling.positions),
              static_cast<long long>(plan.tiling.blocks), static_cast<long long>(plan.lag),
              static_cast<long long>(plan.tickets), static_cast<long long>(scratch));
  std::exit(1);
}
#define CHECK(condition) ((condition) ? void() : fail(#condition, __LINE__))

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }
int64_t size_of(DType dtype) { return dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2; }
int64_t accumulator_of(DType dtype) { return dtype == DType::kDouble ? 8 : 4; }

// --- threads and vectors: two_phase_launch.cuh, vector.cuh

void check_block(const Request& r, const Device& d, const Plan& plan) {
  const int64_t item = size_of(r.problem.dtype);
  CHECK(power_of_two(plan.threads) && plan.threads % 32 == 0);
  CHECK(plan.threads <= 256 && plan.threads <= d.max_threads);  // __launch_bounds__(256, 4)
  CHECK(power_of_two(plan.lanes) && plan.lanes <= plan.threads);
  CHECK(r.problem.layout == Layout::kPlanes || plan.lanes == 1);
  const int64_t widest = 16 / item, middle = item == 2 ? 4 : 1;
  CHECK(plan.vector == widest || plan.vector == middle || plan.vector == 1);
  CHECK(plan.vector * item <= r.alignment || plan.vector == 1);
  for (const int64_t wider : {widest, middle}) CHECK(plan.vector >= wider || wider * item > r.alignment);
}

// --- tiles: Tiling::at as the kernels call it, reduce.cuh, walk.cuh

// Intervals that cover [0, size) one after another, none empty, all beginning and ending at multiples of `step`.
class Cover {
 public:
  Cover(int64_t size, int64_t step) : size_(size), step_(step) {}
  void next(int64_t begin, int64_t end) {
    CHECK(begin == at_ && begin < end && end <= size_);
    CHECK(begin % step_ == 0 && end % step_ == 0);
    at_ = end;
  }
  void finish() const { CHECK(at_ == size_); }

 private:
  int64_t size_, step_, at_ = 0;
};

void check_tile(const Request& r, const Plan& plan, const Tile& tile) {
  const int64_t channels = tile.c1 - tile.c0, positions = tile.s1 - tile.s0;
  CHECK(channels > 0 && (positions > 0 || r.problem.s == 0));
  CHECK(channels < (int64_t{1} << 31));
  if (r.problem.layout == Layout::kRows) {
    CHECK(channels % plan.vector == 0 && channels / plan.vector <= plan.threads);
  } else {
    CHECK(positions < (int64_t{1} << 31));
  }
}

void check_tiles(const Request& r, const Plan& plan, std::mt19937_64& random) {
  const Problem& p = r.problem;
  const Tiling& t = plan.tiling;
  const bool rows = p.layout == Layout::kRows;
  CHECK(t.c == p.c && t.s == p.s && t.blocks >= 1 && t.count >= 1 && t.count % t.blocks == 0);
  CHECK(t.count < 0xffffffffll);  // arrived[n], unsigned, counts to one more
  CHECK(t.blocks <= 256);         // one thread adds up a channel's partial sums
  // Tile i is strip i / blocks by block i % blocks: the strips cover the channels, the blocks cover the positions.
  Cover strips(p.c, rows ? plan.vector : 1), blocks(p.s, rows ? 1 : plan.vector);
  for (int64_t i = 0; i < t.count; i += t.blocks) strips.next(t.at(i).c0, t.at(i).c1);
  strips.finish();
  if (p.s > 0)
    for (int64_t i = 0; i < t.blocks; ++i) blocks.next(t.at(i).s0, t.at(i).s1);
  else
    CHECK(t.blocks == 1);
  if (p.s > 0) blocks.finish();
  const auto check = [&](int64_t i) {
    const Tile tile = t.at(i), strip = t.at(i / t.blocks * t.blocks), block = t.at(i % t.blocks);
    CHECK(tile.c0 == strip.c0 && tile.c1 == strip.c1 && tile.s0 == block.s0 && tile.s1 == block.s1);
    CHECK(t.block(i) >= 0 && t.block(i) < t.blocks);  // partial[n][block][c0 ...]
    CHECK(t.block(i) * p.c + tile.c1 <= t.blocks * p.c);
    check_tile(r, plan, tile);
  };
  for (int64_t i = 0; i < std::min<int64_t>(t.count, 64); ++i) check(i);
  for (int i = 0; i < 16; ++i) check(static_cast<int64_t>(random() % static_cast<uint64_t>(t.count)));
  check(t.count - 1);
}

// --- shared memory: what two_phase.cuh, reduce.cuh and channels.cuh touch

void check_shared(const Request& r, const Device& d, const Plan& plan) {
  const Problem& p = r.problem;
  const Tiling& t = plan.tiling;
  const SharedLayout& at = plan.shared;
  const int64_t a = accumulator_of(p.dtype);
  int64_t sums = 0;
  for (const int64_t i : {int64_t{0}, t.count - 1}) {  // strips are equal but for the last one
    const int64_t channels = t.at(i).c1 - t.at(i).c0;
    const int64_t columns = p.layout == Layout::kRows ? channels / plan.vector : 1;
    const int64_t parts = p.layout == Layout::kRows ? plan.threads / columns : plan.lanes < 32 ? 1 : plan.lanes / 32;
    sums = std::max(sums, channels * parts * a);
  }
  const int64_t padded = p.c + 2 * (r.kernel_size / 2), gate = (2 * padded + r.gate_scratch) * a;
  CHECK(plan.gate_numbers * a >= gate);
  CHECK(at.ticket % 8 == 0 && at.warps % 8 == 0 && at.sums % 8 == 0);
  CHECK(at.ticket >= 0 && at.ticket + 16 <= at.warps);  // a long long and an int
  CHECK(at.warps + plan.threads / 32 * a <= std::min(at.sums, at.gate < 0 ? at.sums : at.gate));
  CHECK(at.sums + sums <= at.total);
  if (at.gate >= 0) CHECK(at.gate % 8 == 0 && at.gate + gate <= at.total);
  CHECK(at.total <= d.shared_per_block);
}

// --- the grid and the order of the visits: two_phase.cuh

struct Turn {
  bool first;
  int64_t tile;
};
Turn turn_of(int64_t ticket, int64_t tiles, int64_t lag) {
  if (ticket < lag) return {true, ticket};
  if (ticket >= 2 * tiles - lag) return {false, ticket - tiles};
  const int64_t turn = ticket - lag;
  return turn % 2 ? Turn{true, lag + turn / 2} : Turn{false, turn / 2};
}

void check_order(const Plan& plan) {
  const int64_t tiles = plan.tickets / 2, per_sample = plan.tiling.count;
  std::vector<int64_t> first(static_cast<size_t>(tiles), -1), second = first, complete(first);
  for (int64_t ticket = 0; ticket < plan.tickets; ++ticket) {
    const Turn turn = turn_of(ticket, tiles, plan.lag);
    CHECK(turn.tile >= 0 && turn.tile < tiles);
    int64_t& seen = (turn.first ? first : second)[static_cast<size_t>(turn.tile)];
    CHECK(seen < 0);  // not twice in the same role
    seen = ticket;
    if (turn.first) {
      int64_t& last = complete[static_cast<size_t>(turn.tile / per_sample)];
      last = std::max(last, ticket);
    }
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const size_t i = static_cast<size_t>(tile);
    CHECK(first[i] >= 0 && first[i] < second[i]);
    // It waits for the whole sample: only for tickets that running blocks have taken.
    CHECK(complete[static_cast<size_t>(tile / per_sample)] < second[i]);
  }
}

void check_grid(const Request& r, const Device& d, const Plan& plan) {
  const Problem& p = r.problem;
  const Wide tiles = Wide{p.n} * plan.tiling.count;
  CHECK(plan.tickets == 2 * tiles);
  CHECK(plan.lag >= plan.tiling.count && plan.lag <= tiles);
  CHECK(plan.blocks > 0 && plan.blocks <= 0x7fffffff && plan.blocks <= plan.tickets);
  // All blocks of the grid find room at once, and as much as the registers leave.
  const int64_t each = (plan.blocks + d.multiprocessors - 1) / d.multiprocessors;
  CHECK(each * plan.threads <= std::min(256 * resident_blocks(r.direction), d.threads_per_multiprocessor) &&
        each <= 16);
  CHECK(each * (plan.shared.total + 1024) <= d.shared_per_multiprocessor);
  const Wide workspace = Wide{p.n} * p.c * plan.tiling.blocks * 8 + Wide{plan.blocks} * plan.gate_numbers * 8;
  CHECK(workspace < Wide{1} << 62);
  if (plan.tickets > 4096) return;
  check_order(plan);
  ++met.ordered;
}

// --- predictions

int64_t maps(const Request& r) {
  const bool relu = r.problem.flags & kRelu;
  if (r.direction == Direction::kForward) return r.residual ? 3 : 2;
  return !relu ? 3 : r.residual ? 5 : 4;
}

void check_predictions(const Request& r, const Device& d, const Plan& plan) {
  const Problem& p = r.problem;
  const Wide map = Wide{p.n} * p.c * p.s * size_of(p.dtype);
  CHECK(plan.floor_bytes == maps(r) * map);
  CHECK(plan.memory_bytes > plan.floor_bytes && plan.l2_bytes >= plan.floor_bytes && plan.l2_bytes <= 7 * map);
  if (d.copy_rate == 0) {
    CHECK(plan.floor_us == 0 && plan.predicted_us == 0);
  } else {
    CHECK(plan.predicted_us > plan.floor_us && plan.predicted_us < 1e18);
    const double expected = static_cast<double>(plan.floor_bytes) / d.copy_rate * 1e6;
    CHECK(plan.floor_us >= expected * 0.999 && plan.floor_us <= expected * 1.001);
  }
}

// --- what must not change

bool same_work(const Plan& a, const Plan& b) {
  return a.vector == b.vector && a.threads == b.threads && a.lanes == b.lanes && a.tiling.c == b.tiling.c &&
         a.tiling.s == b.tiling.s && a.tiling.channels == b.tiling.channels &&
         a.tiling.positions == b.tiling.positions && a.tiling.blocks == b.tiling.blocks &&
         a.tiling.count == b.tiling.count && a.shared.ticket == b.shared.ticket && a.shared.warps == b.shared.warps &&
         a.shared.sums == b.shared.sums && a.shared.gate == b.shared.gate && a.shared.total == b.shared.total;
}
bool same(const Plan& a, const Plan& b) {
  return same_work(a, b) && a.path == b.path && a.tickets == b.tickets && a.lag == b.lag && a.blocks == b.blocks &&
         a.floor_bytes == b.floor_bytes && a.memory_bytes == b.memory_bytes && a.l2_bytes == b.l2_bytes &&
         a.floor_us == b.floor_us && a.predicted_us == b.predicted_us;
}

void check(const Request& r, const Device& d, std::mt19937_64& random) {
  Plan plan{};
  context = {&r, &d, &plan};
  plan = make_plan(r, d);
  CHECK(plan.reason && *plan.reason && !describe(plan).empty());
  CHECK(same(plan, make_plan(r, d)));
  check_block(r, d, plan);  // of the kernels for parameters, even where there is no sample
  ++met.plans;
  if (r.problem.n == 0 || r.problem.c == 0) {
    ++met.nothing;
    CHECK(plan.path == Path::kNothing && plan.blocks == 0 && plan.tickets == 0 && plan.floor_bytes == 0);
    return;
  }
  CHECK(plan.path == Path::kTwoPhase);
  met.strips += plan.tiling.count > plan.tiling.blocks;
  met.partials += plan.tiling.blocks > 1;
  met.global_gates += plan.shared.gate < 0;
  met.small_blocks += plan.threads < 256 && d.max_threads >= 256;
  met.lanes += plan.lanes > 1;
  met.scalar += plan.vector == 1;
  check_tiles(r, plan, random);
  check_shared(r, d, plan);
  check_grid(r, d, plan);
  check_predictions(r, d, plan);
  Request alone = r;
  alone.problem.n = 1;
  CHECK(same_work(plan, make_plan(alone, d)));  // a sample's bits don't depend on its batch
}

// --- problems

class Problems {
 public:
  explicit Problems(uint64_t seed) : random(seed) {}

  Request next() {
    constexpr int64_t kSides[] = {1, 2, 3, 4, 7, 8, 14, 15, 28, 56, 75, 112, 224};
    Request r{};
    Problem& p = r.problem;
    p.dtype = static_cast<DType>(below(4));
    p.layout = static_cast<Layout>(below(2));
    p.variant = static_cast<Variant>(below(3));
    const int64_t side = kSides[below(std::size(kSides))];
    p.s = below(3) == 0 ? log_uniform(37) : below(3) == 0 ? log_uniform(12) : side * side;
    p.c = below(3) == 0 ? log_uniform(17) : below(2) == 0 ? int64_t{8} << below(9) : 1 + below(4096);
    p.n = below(3) == 0 ? log_uniform(33) : below(2) == 0 ? int64_t{1} << below(9) : 1 + below(64);
    // A map of 2^47 elements is beyond any device; less than that must not overflow.
    while (Wide{p.c} * p.s > Wide{1} << 40) p.s = std::max<int64_t>(1, p.s / 3);
    while (Wide{p.n} * p.c * p.s > Wide{1} << 47) p.n = std::max<int64_t>(1, p.n / 3);
    if (below(50) == 0) (below(3) == 0 ? p.n : below(2) == 0 ? p.c : p.s) = 0;
    r.direction = static_cast<Direction>(below(2));
    r.residual = below(2) != 0;
    for (const int64_t flag : {kRelu, kCircular, kHardSigmoid, kCrossChannel, kSingleSigmoid})
      if (below(2) != 0) p.flags |= flag;
    r.alignment = alignment_of(p, dense(p));
    while (r.alignment > size_of(p.dtype) && below(5) == 0) r.alignment /= 2;
    r.kernel_size = p.variant == Variant::kMultiKernel ? 7 : 1 + 2 * below(below(20) == 0 ? 500 : 5);
    const int64_t hidden = below(2) == 0 ? p.c / 16 : below(300);
    r.gate_scratch = p.variant == Variant::kEca           ? 0
                     : p.variant == Variant::kMultiKernel ? 3
                                                          : 2 * p.c + 2 * r.kernel_size + 2 * hidden;
    return r;
  }

  std::mt19937_64 random;

 private:
  // What alignment_of says of dense maps is checked here, too: it divides addresses, strides and lengths of runs.
  Batch dense(const Problem& p) {
    const int64_t item = size_of(p.dtype), run = p.layout == Layout::kRows ? p.c : p.s;
    const int64_t runs = p.layout == Layout::kRows ? p.s : p.c, stride = run + (below(4) == 0 ? below(9) : 0);
    const int64_t sample = runs * stride + (below(4) == 0 ? below(9) : 0);
    const int64_t start = 4096 + (below(4) == 0 ? item * below(16) : 0);
    const Batch map{reinterpret_cast<void*>(start), sample, stride};
    const int64_t alignment = alignment_of(p, map);
    const Request r{p, Direction::kForward, false, alignment, 1, 0};
    const Plan none{};
    context = {&r, kStrange, &none};
    CHECK(power_of_two(alignment) && alignment <= 16 && start % alignment == 0 && run * item % alignment == 0);
    CHECK(p.n <= 1 || sample * item % alignment == 0);
    CHECK(runs <= 1 || stride * item % alignment == 0);
    CHECK(alignment_of(p, {nullptr, 1, 1}) == 16);
    return map;
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); }
  int64_t log_uniform(int64_t bits) { return 1 + below(int64_t{1} << below(bits + 1)); }
};

}  // namespace

int main(int, char** arguments) {
  const int64_t count = std::atoll(arguments[1]);
  Problems problems(static_cast<uint64_t>(std::atoll(arguments[2])));
  size_t known = 0;
  const Device* const devices = known_devices(&known);
  for (size_t i = 1; i < known; ++i)
    if (std::string(devices[i - 1].name) >= devices[i].name) return std::puts("devices are not sorted by name"), 1;
  for (int64_t i = 0; i < count; ++i) {
    const Request r = problems.next();
    for (size_t d = 0; d < known; ++d) check(r, devices[d], problems.random);
    for (const Device& device : kStrange) check(r, device, problems.random);
  }
  std::printf(
      "plans %lld nothing %lld ordered %lld strips %lld partials %lld global_gates %lld small_blocks %lld lanes %lld "
      "scalar %lld\n",
      met.plans, met.nothing, met.ordered, met.strips, met.partials, met.global_gates, met.small_blocks, met.lanes,
      met.scalar);
}
