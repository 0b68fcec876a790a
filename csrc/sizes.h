// SPDX-License-Identifier: MIT
// L0. Sizes come from callers, and their product may overflow an int64_t. Two products are checked, by both backends
// and by the plan: the elements of a map (tensors.h), and what the gates of all samples need (arguments.h). All other
// counts, allocations and offsets are small multiples of these.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace eca {

// More than fit any machine, and a small multiple of it still fits an int64_t.
constexpr int64_t kMostNumbers = int64_t{1} << 48;

// Throws if the product of the sizes is larger. A size of 0 counts as 1: an empty map still has a mean per channel.
template <class Sizes = std::initializer_list<int64_t>>
void require_countable(const char* argument, const char* what, const Sizes& sizes) {
  int64_t product = 1;
  bool wraps = false;
  for (const int64_t size : sizes) wraps |= __builtin_mul_overflow(product, size > 0 ? size : 1, &product);
  if (!wraps && product <= kMostNumbers) return;
  std::string got;
  for (const int64_t size : sizes) got += (got.empty() ? "" : " x ") + std::to_string(size);
  throw std::invalid_argument(std::string(argument) + ": expected at most 2^48 " + what +
                              ", a size of 0 counting as 1" + ", got " + got);
}

}  // namespace eca
