// SPDX-License-Identifier: MIT
// L0. What measurements have found to be best, in place of what resident.cpp would choose: a table of this process.
#pragma once
#include <vector>

#include "resident.h"

namespace eca {

// For calls of exactly this kind, with residual and ReLU or without.
struct Rule {
  Direction direction;
  DType dtype;
  Layout layout;
  int variant;  // -1: any
  int64_t n;    // 0: any
  int64_t c, s;
  Choice choice;
};

void set_tuning(std::vector<Rule> rules);

// The first rule's choice that is for such a call, or none.
Choice tuned(const Request& request);

}  // namespace eca
