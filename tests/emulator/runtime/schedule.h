// SPDX-License-Identifier: MIT
// The order in which clusters, blocks, warps and copies get to run, and how many clusters are resident.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

namespace emulator {

class Schedule {
 public:
  void set(unsigned seed) {
    seed_ = seed;
    generator_.seed(seed);
  }
  bool in_turn() const { return seed_ == 0; }
  bool reversed() const { return seed_ == 1; }
  bool drawn() const { return seed_ > 1; }

  template <typename T>
  void arrange(std::vector<T>& items) {
    if (reversed()) std::reverse(items.begin(), items.end());
    if (drawn()) std::shuffle(items.begin(), items.end(), generator_);
  }
  size_t below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(generator_); }

  // How many of a launch's clusters may be resident at once.
  size_t window(size_t clusters) { return in_turn() ? 1 : reversed() ? clusters : 1 + below(clusters); }

 private:
  unsigned seed_ = 0;
  std::minstd_rand generator_;
};

Schedule& schedule();

}  // namespace emulator
