// SPDX-License-Identifier: MIT
// Barriers of a block, and collectives of a warp.
#pragma once

#include "interface.h"

#include <concepts>
#include <cstring>
#include <functional>
#include <type_traits>

namespace emulator {

// The bits of a register-sized value, for exchange between lanes.
template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

// Returns the lane's own value if the source is outside its segment; all ones if the source takes no part.
template <typename T>
T shuffle(unsigned mask, T value, Where where, int width, auto source_of) {
  const Lanes lanes = exchange(mask, to_bits(value), where);
  const int self = lanes.self, first = self & ~(width - 1), last = first + width - 1;
  const int source = source_of(self, first);
  if (source < first || source > last) return value;
  return from_bits<T>(lanes.valid >> source & 1 ? lanes.value[source] : ~uint64_t{0});
}

template <typename T>
T reduce(unsigned mask, T value, Where where, auto combine) {
  const Lanes lanes = exchange(mask, to_bits(value), where);
  T total = value;
  bool first = true;
  for (int lane = 0; lane < warpSize; ++lane)
    if (lanes.valid >> lane & 1) {
      const T other = from_bits<T>(lanes.value[lane]);
      total = first ? other : T(combine(total, other));
      first = false;
    }
  return total;
}

}  // namespace emulator

inline void __syncthreads(EMULATOR_HERE) { emulator::syncthreads(false, where); }
inline int __syncthreads_count(int predicate, EMULATOR_HERE) { return emulator::syncthreads(predicate, where); }
inline int __syncthreads_or(int predicate, EMULATOR_HERE) { return emulator::syncthreads(predicate, where) != 0; }
inline int __syncthreads_and(int predicate, EMULATOR_HERE) { return emulator::syncthreads(!predicate, where) == 0; }
inline void __syncwarp(unsigned mask = ~0u, EMULATOR_HERE) { emulator::syncwarp(mask, where); }
inline void __nanosleep(unsigned, EMULATOR_HERE) { emulator::poll("__nanosleep (polling)", where); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, where, width, [&](int, int first) { return first + (source & (width - 1)); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, where, width, [&](int lane, int) { return lane ^ bits; });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, where, width, [&](int lane, int) { return lane + int(delta); });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, EMULATOR_HERE) {
  return emulator::shuffle(mask, value, where, width, [&](int lane, int) { return lane - int(delta); });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  const emulator::Lanes lanes = emulator::exchange(mask, predicate != 0, where);
  unsigned ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane)
    if (lanes.valid >> lane & 1) ballot |= unsigned(lanes.value[lane]) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::reduce(mask, int(predicate != 0), where, std::bit_or<>{});
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  return emulator::reduce(mask, int(predicate != 0), where, std::bit_and<>{});
}

template <std::integral T>
T __reduce_add_sync(unsigned mask, T value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, [](T a, T b) { return T(std::make_unsigned_t<T>(a) + b); });
}
template <std::integral T>
T __reduce_min_sync(unsigned mask, T value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, [](T a, T b) { return b < a ? b : a; });
}
template <std::integral T>
T __reduce_max_sync(unsigned mask, T value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, std::bit_and<>{});
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, std::bit_or<>{});
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
  return emulator::reduce(mask, value, where, std::bit_xor<>{});
}
