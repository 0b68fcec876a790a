// SPDX-License-Identifier: MIT
// L0. Sizes come from callers, and a product of them may be more than an int64_t holds. Whatever is counted, allocated
// or addressed is a small multiple of one of the two products that are checked with this, by both backends and by the
// plan: the elements of a map (tensors.h), and what the gates of all samples need (arguments.h).
#pragma once
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace eca {

// No machine has so many, and some hundred times as many bytes are still an int64_t.
constexpr int64_t kMostNumbers = int64_t{1} << 48;

// Refuses sizes with a larger product. One of 0 counts as 1: an empty map may have channels, with a mean each.
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
