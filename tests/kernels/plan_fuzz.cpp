// SPDX-License-Identifier: MIT
// Plans for random calls on all kinds of devices, held against what the kernels do with them; everything is worked out
// anew here, from the sources of the kernels. tests/kernels/test_plan.py compiles this with the plan and nothing else.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/gates/registry.h"
#include "../../csrc/plan/plan.h"

namespace {

using namespace eca;

const Device kDevices[] = {
    {"h100", 90, 132, 1024, 2048, 16, 48 << 10, 228 << 10, 227 << 10, 50 << 20},
    {"rtx5090", 120, 170, 1024, 1536, 8, 48 << 10, 100 << 10, 99 << 10, 96 << 20},
    {"a100", 80, 108, 1024, 2048, 1, 48 << 10, 164 << 10, 163 << 10, 40 << 20},
    {"t4", 75, 40, 1024, 1024, 1, 48 << 10, 64 << 10, 64 << 10, 4 << 20},
    {"one multiprocessor", 90, 1, 1024, 2048, 16, 48 << 10, 228 << 10, 227 << 10, 50 << 20},
    {"emulated", 90, 3, 64, 2048, 16, 7 << 10, 8 << 10, 7 << 10, 64 << 10},
    {"blocks of 32", 75, 7, 32, 1024, 1, 16 << 10, 64 << 10, 64 << 10, 0},
    {"odd", 86, 83, 768, 1536, 1, 48 << 10, 100 << 10, 99 << 10, 5 << 20},
    {"tomorrow", 150, 1021, 4096, 8192, 8, 48 << 10, 512 << 10, 500 << 10, int64_t{1} << 30},
};

const Request* request;
const Device* device;
struct {
  long long plans, nothing, one_pass, two_phase, clusters, parts, straddling, streamed, kept, few_samples, global_gates;
} met;

[[noreturn]] void fail(const char* what, int line) {
  const Problem& p = request->problem;
  std::printf(
      "line %d: %s\nn %lld c %lld s %lld dtype %d layout %d variant %d flags %lld direction %d residual %d half %d on "
      "%s\n",
      line, what, static_cast<long long>(p.n), static_cast<long long>(p.c), static_cast<long long>(p.s),
      static_cast<int>(p.dtype), static_cast<int>(p.layout), static_cast<int>(p.variant),
      static_cast<long long>(p.flags), static_cast<int>(request->direction), request->residual, request->half,
      device->name);
  std::exit(1);
}
#define CHECK(condition) ((condition) ? void() : fail(#condition, __LINE__))

bool power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// Numbers that the threads of a tile leave: planes.cuh, rows.cuh.
int64_t left_by_threads(int64_t channels, int vector, int lanes, int threads) {
  if (request->problem.layout == Layout::kPlanes) return lanes > 32 ? channels * (lanes / 32) : 0;
  const int64_t columns = channels / vector;
  const bool share = columns < 32 && power_of_two(columns);
  return channels * (share ? threads / 32 : threads / columns);
}

void check_one_pass(const Plan& plan) {
  const Request& r = *request;
  const Problem& p = r.problem;
  const OnePassPlan& o = plan.one_pass;
  const int64_t item = item_size(p.dtype), vector = 16 / item;
  const bool rows = p.layout == Layout::kRows;
  CHECK(p.dtype != DType::kDouble && device->capability >= 80 && r.dense && p.s > 0);
  CHECK(o.blocks >= 1 && o.blocks <= std::min({device->most_blocks, r.most_blocks, 16}) && o.blocks % o.parts == 0);
  CHECK(plan.blocks == p.n * o.blocks && plan.blocks < (int64_t{1} << 31));
  CHECK(power_of_two(plan.threads) && plan.threads >= 32);
  CHECK(plan.threads <= 512 && plan.threads <= device->max_threads);
  // Channels and positions are shared out, to every block some; windows reach into the neighbour and no further.
  const int64_t columns = o.blocks / o.parts, last = p.c - (columns - 1) * o.channels;
  CHECK(last >= 1 && (columns == 1 || last >= r.half) && last <= o.channels);
  const int64_t last_positions = p.s - (o.parts - 1) * int64_t{o.positions};
  CHECK(last_positions >= 1 && last_positions <= o.positions && (rows || o.parts == 1));
  // Whole vectors begin and end with every block's part.
  for (const int64_t own : {int64_t{o.channels}, last}) CHECK(own * (rows ? 1 : p.s) * item % 16 == 0);
  CHECK(o.straddle == (!rows && p.s * item % 16 != 0));
  CHECK(o.bulk == (!rows && device->capability >= 90));
  CHECK(!rows || o.channels / vector <= plan.threads);
  CHECK(rows || (power_of_two(o.lanes) && o.lanes <= plan.threads));
  // What is kept: x or grad_y always; the residual or x where there is room.
  const bool extra = !r.backward() && r.residual;
  CHECK(o.slabs.count == 1 + o.slabs.second_sum + o.slabs.extra);
  CHECK((r.backward() || !o.slabs.second_sum) && (extra || !o.slabs.extra));
  CHECK(o.slabs.bytes >= int64_t{o.channels} * o.positions * item && o.slabs.bytes % 128 == 0);
  // Memory: pieces follow one another, each as large as what the kernel writes there.
  int64_t pushed = o.parts > 1 ? int64_t{o.parts} * o.channels : 0;
  int exchanges = r.needs.pads + 1;
  for (const int count : r.needs.sums) {
    exchanges += 2;
    if (columns == 1 || count == 0) continue;
    pushed += count <= 16 ? columns * count : columns * ((count + columns - 1) / columns);
  }
  CHECK(exchanges <= kMaxExchanges);
  const int vectors = static_cast<int>(vector);
  const int64_t left = std::max(left_by_threads(o.channels, vectors, o.lanes, plan.threads),
                                left_by_threads(last, vectors, o.lanes, plan.threads));
  CHECK(o.shared.stride >= o.channels + 2 * r.half);
  const int64_t places[] = {o.shared.barriers, o.shared.arrays, o.shared.numbers, o.shared.scratch,
                            o.shared.sums,     o.shared.parts,  o.shared.total};
  const int64_t arrays = (r.backward() ? 3 : 2) + r.needs.arrays;
  const int64_t bytes[] = {8 * 10,  4 * arrays * o.shared.stride, 4 * r.numbers, 4 * r.needs.scratch, 4 * pushed,
                           4 * left};
  CHECK(o.shared.barriers >= int64_t{o.slabs.bytes} * o.slabs.count);
  for (int i = 0; i < 6; ++i) CHECK(places[i] % 16 == 0 && places[i + 1] >= places[i] + bytes[i]);
  CHECK(o.shared.total <= device->shared_opt_in);
  CHECK(o.blocks_per_multiprocessor >= 1);
  CHECK(o.blocks_per_multiprocessor * (o.shared.total + int64_t{1024}) <= device->shared_per_multiprocessor);
  CHECK(o.blocks_per_multiprocessor * plan.threads <= 1024);
  ++met.one_pass;
  met.clusters += o.blocks > 1;
  met.parts += o.parts > 1;
  met.straddling += o.straddle;
  met.streamed += r.backward() && !o.slabs.second_sum;
  met.kept += o.slabs.extra;
}

// In batches of every size.
void check_invariance() {
  Request r = *request;
  r.batch_invariant = true;
  const Plan first = make_plan(r, *device);
  r.problem.n = 1 + r.problem.n % 1000 * 7;
  const Plan other = make_plan(r, *device);
  CHECK(first.path == other.path && first.threads == other.threads);
  CHECK(first.one_pass.blocks == other.one_pass.blocks && first.one_pass.parts == other.one_pass.parts);
  CHECK(first.one_pass.lanes == other.one_pass.lanes && first.two_phase.lanes == other.two_phase.lanes);
  CHECK(first.two_phase.tiling.positions == other.two_phase.tiling.positions);
  CHECK(first.two_phase.tiling.channels == other.two_phase.tiling.channels);
}

void check_two_phase(const Plan& plan) {
  const Request& r = *request;
  const Problem& p = r.problem;
  const TwoPhasePlan& two = plan.two_phase;
  const Tiling& t = two.tiling;
  const int64_t item = item_size(p.dtype), a = p.dtype == DType::kDouble ? 8 : 4;
  const bool rows = p.layout == Layout::kRows;
  CHECK(power_of_two(plan.threads) && plan.threads >= 32 && plan.threads <= 256 && plan.threads <= device->max_threads);
  CHECK(two.vector == 1 || two.vector * item == 16);
  CHECK(two.straddle ? r.dense && !rows && two.vector > 1 : two.vector == 1 || r.aligned);
  CHECK(rows || (power_of_two(two.lanes) && two.lanes <= plan.threads));
  // Tile i is strip i / blocks by block i % blocks: the strips cover the channels, the blocks cover the positions.
  CHECK(t.blocks >= 1 && t.blocks <= 256 && t.count % t.blocks == 0 && t.count < 0xffffffffll);
  const int64_t c_step = rows ? two.vector : 1, s_step = rows || two.straddle ? 1 : two.vector;
  int64_t c = 0, s = 0, left = 0;
  for (int64_t i = 0; i < t.count; i += t.blocks) {
    const Tile tile = t.at(i);
    CHECK(tile.c0 == c && tile.c1 > c && tile.c1 % c_step == 0 && tile.c1 - tile.c0 < (int64_t{1} << 31));
    CHECK(!rows || (tile.c1 - tile.c0) / two.vector <= plan.threads);
    left = std::max(left, left_by_threads(tile.c1 - tile.c0, two.vector, two.lanes, plan.threads));
    c = tile.c1;
  }
  CHECK(c == p.c);
  for (int64_t i = 0; i < t.blocks && p.s > 0; ++i) {
    CHECK(t.at(i).s0 == s && t.at(i).s1 > s && (t.at(i).s1 % s_step == 0 || t.at(i).s1 == p.s));
    s = t.at(i).s1;
  }
  CHECK(s == p.s);
  // Tickets: the first visits of one sample at least come before the first second one.
  const int64_t tiles = p.n * t.count;
  CHECK(two.tickets == 2 * tiles && two.lag >= t.count && two.lag <= tiles);
  CHECK(plan.blocks >= 1 && plan.blocks <= two.tickets && plan.blocks < (int64_t{1} << 31));
  const int64_t arrays = (r.backward() ? 3 : 2) + r.needs.arrays;
  CHECK(two.gate_numbers == arrays * (p.c + 2 * r.half) + r.numbers + r.needs.scratch);
  CHECK(two.shared.sums >= 16 && two.shared.total >= two.shared.sums + left * a);
  CHECK(two.shared.gate < 0 || two.shared.total >= two.shared.gate + two.gate_numbers * a);
  const int64_t gate_end = two.shared.gate + two.gate_numbers * a, blocks = r.backward() ? 3 : 4;  // __launch_bounds__
  CHECK(two.shared.gate < 0 || blocks * (gate_end + 1024) <= device->shared_per_multiprocessor);
  CHECK(two.shared.total <= device->shared_per_block);
  ++met.two_phase;
  met.global_gates += two.shared.gate < 0;
}

template <class T>
T any_of(std::mt19937_64& random, std::initializer_list<T> values) {
  return values.begin()[random() % values.size()];
}

int64_t size(std::mt19937_64& random, int most_bits) {
  const int64_t n = static_cast<int64_t>(random() % (uint64_t{1} << (1 + random() % most_bits)));
  return random() % 2 ? n : (n + 7) / 8 * 8;
}

Request any_request(std::mt19937_64& random) {
  Request r{};
  Problem& p = r.problem;
  const bool huge = random() % 20 == 0;
  p.n = size(random, huge ? 30 : 12);
  p.c = size(random, huge ? 20 : 13);
  p.s = huge ? size(random, 20) : any_of<int64_t>(random, {1, 4, 9, 49, 196, 784, 3136, size(random, 16)});
  p.dtype =
      any_of(random, {DType::kFloat, DType::kHalf, DType::kBFloat16, DType::kHalf, DType::kFloat, DType::kDouble});
  p.layout = p.s == 1 || random() % 2 ? Layout::kRows : Layout::kPlanes;
  p.variant = static_cast<Variant>(random() % kVariants);
  p.flags = static_cast<int64_t>(random() % 16);
  r.direction = any_of(random, {Direction::kForward, Direction::kBackward});
  r.residual = random() % 2;
  const int64_t run = p.layout == Layout::kRows ? p.c : p.s;
  r.aligned = run * item_size(p.dtype) % 16 == 0 && random() % 8;
  r.dense = p.c * p.s * item_size(p.dtype) % 16 == 0 && random() % 8 && (r.aligned || run * item_size(p.dtype) % 16);
  const int k = std::string(info_of(p.variant).name) == "multi_kernel_eca" ? 7 : 1 + 2 * static_cast<int>(random() % 8);
  const GateShape shape{p.c, k, static_cast<int>(p.c / 16), p.flags};
  const GateFacts facts = gate_facts(p.variant, shape);
  r.half = shape.half();
  r.needs = facts.needs[r.backward()];
  r.numbers = facts.numbers;
  if (random() % 4 == 0) {
    r.choice = {any_of(random, {-1, 0, 1, 2, 5, 16}), any_of(random, {0, 1, 2, 4}), any_of(random, {0, 32, 128, 512})};
  }
  if (random() % 8 == 0) r.most_blocks = 1 + static_cast<int>(random() % 16);
  return r;
}

}  // namespace

// Arguments: how many requests, the seed.
int main(int, char** argv) {
  std::mt19937_64 random(std::strtoull(argv[2], nullptr, 10));
  for (int64_t i = std::atoll(argv[1]); i-- > 0;) {
    const Request r = any_request(random);
    for (const Device& d : kDevices) {
      request = &r;
      device = &d;
      const Plan plan = make_plan(r, d);
      ++met.plans;
      CHECK(plan.reason && *plan.reason);
      CHECK((plan.path == Path::kNothing) == (r.problem.n == 0 || r.problem.c == 0));
      met.nothing += plan.path == Path::kNothing;
      if (plan.path == Path::kOnePass) check_one_pass(plan);
      if (plan.path == Path::kTwoPhase) check_two_phase(plan);
      if (plan.path != Path::kNothing && r.choice.blocks == 0 && r.problem.n < 1 << 20) check_invariance();
      met.few_samples += plan.path == Path::kOnePass && r.problem.n < 8;
    }
  }
  std::printf(
      "plans %lld nothing %lld one_pass %lld two_phase %lld clusters %lld parts %lld straddling %lld streamed %lld "
      "kept %lld few_samples %lld global_gates %lld\n",
      met.plans, met.nothing, met.one_pass, met.two_phase, met.clusters, met.parts, met.straddling, met.streamed,
      met.kept, met.few_samples, met.global_gates);
  // The time of one plan, the least of several runs.
  Request r{};
  r.problem = {256, 2048, 49, DType::kHalf, Layout::kPlanes, kEca, kRelu};
  r.direction = Direction::kBackward;
  r.aligned = r.dense = r.residual = true;
  double least = 1e9;
  int64_t sum = 0;
  for (int run = 0; run < 20; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 10000; ++i) {
      r.problem.n = 256 + i % 2;
      sum += make_plan(r, kDevices[0]).threads;
    }
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    least = std::min(least, took.count() / 10000);
  }
  std::printf("ns %.0f sum %lld\n", least, static_cast<long long>(sum));
}
