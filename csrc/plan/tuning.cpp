// SPDX-License-Identifier: MIT
// L0. The table of tuning rules, and batch invariance; see plan.h.
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "plan.h"

namespace eca {
namespace {

using Rules = std::vector<Rule>;

std::shared_ptr<const Rules> rules;  // null: none

}  // namespace

void set_tuning(Rules replacement) {
  std::atomic_store(&rules, replacement.empty() ? nullptr : std::make_shared<const Rules>(std::move(replacement)));
}

bool batch_invariance() {
  static const bool wanted = [] {
    const char* const value = std::getenv("ECA_CUDA_BATCH_INVARIANT");
    return value && std::string(value) == "1";
  }();
  return wanted;
}

Choice tuned(const Problem& p, Direction direction) {
  const std::shared_ptr<const Rules> now = std::atomic_load(&rules);
  if (!now) return {};
  const int64_t n = batch_invariance() ? 0 : p.n;  // rules for one batch size would change its bits
  for (const Rule& r : *now) {
    const bool fits = (r.variant < 0 || r.variant == static_cast<int>(p.variant)) && (r.n == 0 || r.n == n);
    if (fits && r.direction == direction && r.dtype == p.dtype && r.layout == p.layout && r.c == p.c && r.s == p.s)
      return r.choice;
  }
  return {};
}

}  // namespace eca
