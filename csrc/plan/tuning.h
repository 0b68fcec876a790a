// SPDX-License-Identifier: MIT
// L0. What measurements have found to be best, in place of what resident.cpp would choose: a table of this process.
#pragma once
#include <vector>

#include "resident.h"

namespace eca {

// For calls of exactly this kind; n: 0 for any.
struct Rule {
  Direction direction;
  DType dtype;
  Layout layout;
  int64_t n, c, s;
  Choice choice;
};

void set_tuning(std::vector<Rule> rules);

// The first rule's choice that is for such a call, or none.
Choice tuned(const Request& request);

}  // namespace eca
