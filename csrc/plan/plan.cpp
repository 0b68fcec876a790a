// SPDX-License-Identifier: MIT
// L0. See plan.h.
#include "plan.h"

#include <algorithm>

namespace eca {

bool is_aligned(const Problem& p, const MapView& map) {
  if (!map.data) return true;
  const bool rows = p.layout == Layout::kRows;
  int64_t elements = rows ? p.c : p.s;
  if (p.n > 1) elements |= map.sample_stride;
  if ((rows ? p.s : p.c) > 1) elements |= map.run_stride;
  return elements * item_size(p.dtype) % 16 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

bool is_dense(const Problem& p, const MapView& map) {
  if (!map.data) return true;
  const int64_t e = item_size(p.dtype), length = p.layout == Layout::kRows ? p.c : p.s;
  const int64_t runs = p.layout == Layout::kRows ? p.s : p.c;
  const bool follow = runs == 1 || map.run_stride == length;
  const bool aligned = reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && p.c * p.s * e % 16 == 0;
  return follow && aligned && (p.n == 1 || map.sample_stride * e % 16 == 0);
}

int lanes_for(int64_t planes, int64_t vectors, int threads) {
  int lanes = 1;
  while (lanes < threads && lanes * planes < 2 * threads && lanes < vectors) lanes *= 2;
  return lanes > 1 && lanes * planes > 2 * threads ? lanes / 2 : lanes;
}

int64_t partial_sums(const Problem& p, int64_t channels, int lanes, int vector, int threads) {
  channels = std::min(channels, p.c);
  if (p.layout == Layout::kPlanes) return lanes > 32 ? channels * (lanes / 32) : 0;
  int64_t most = 0;  // a narrower last tile may need more
  for (const int64_t strip : {channels, p.c % channels}) {
    const int columns = static_cast<int>(strip / vector);
    if (columns > 0) most = std::max(most, strip * parts_of_rows(threads, columns));
  }
  return most;
}

Plan make_plan(const Request& r, const Device& d) {
  Plan plan{};
  if (r.problem.n == 0 || r.problem.c == 0) {
    plan.reason = r.problem.n == 0 ? "no samples" : "no channels";
    return plan;
  }
  if (const char* reason = plan_one_pass(r, d, &plan)) {
    plan = {};
    plan_two_phase(r, d, &plan);
    plan.reason = reason;
  }
  return plan;
}

std::string describe(const Plan& plan) {
  if (plan.path == Path::kNothing) return "nothing to do";
  const bool one = plan.path == Path::kOnePass;
  const int64_t blocks = one ? plan.one_pass.blocks : plan.blocks;
  const int64_t shared = one ? plan.one_pass.shared.total : plan.two_phase.shared.total;
  return (one ? "one pass: for each sample " : "two-phase: ") + std::to_string(blocks) + " blocks of " +
         std::to_string(plan.threads) + " threads, " + std::to_string(shared) + " bytes of shared memory each";
}

}  // namespace eca
