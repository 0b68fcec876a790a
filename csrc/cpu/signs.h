// SPDX-License-Identifier: MIT
// L1. The signs of y (problem.h) on a CPU: a byte for eight elements, two bytes for a pack.
#pragma once
#include "kernels.h"
#include "memory.h"

namespace eca {
inline namespace ECA_TARGET {

// Bit l of the result is lane l.
template <class A>
inline uint32_t bits_of(Mask<A> m) {
  uint32_t bits = 0;
  for (int i = 0; i < Pack<A>::kVectors; ++i) {
    uint32_t of_vector = 0;
#if defined(ECA_MASKS)
    if constexpr (sizeof(A) == 4) of_vector = _mm512_movepi32_mask((__m512i)m.v[i]);
    if constexpr (sizeof(A) == 8) of_vector = _mm512_movepi64_mask((__m512i)m.v[i]);
#elif defined(ECA_F16C)
    if constexpr (sizeof(A) == 4) of_vector = _mm256_movemask_ps((__m256)m.v[i]);
    if constexpr (sizeof(A) == 8) of_vector = _mm256_movemask_pd((__m256d)m.v[i]);
#else
    for (int j = 0; j < Pack<A>::kPerVector; ++j) of_vector |= (m.v[i][j] != 0) << j;
#endif
    bits |= of_vector << (i * Pack<A>::kPerVector);
  }
  return bits;
}

// Sets the lanes whose bits are set.
template <class A>
inline Mask<A> mask_of(uint32_t bits) {
  Mask<A> mask;
  for (int i = 0; i < Pack<A>::kVectors; ++i) {
    auto lane = mask.v[i] - mask.v[i];
    for (int j = 0; j < Pack<A>::kPerVector; ++j) lane[j] = 1 << (i * Pack<A>::kPerVector + j);
    mask.v[i] = (lane & (lane - lane + static_cast<int>(bits))) != 0;
  }
  return mask;
}

// The signs of elements e .. e + n, 0 < n <= 16.
inline uint32_t load_signs(const uint8_t* signs, int64_t e, int n) {
  if (n == kLanes && e % 8 == 0) {
    uint16_t bits;
    std::memcpy(&bits, signs + e / 8, sizeof bits);
    return bits;
  }
  const int shift = static_cast<int>(e % 8), bytes = (shift + n + 7) / 8;
  uint32_t bits = 0;
  for (int i = 0; i < bytes; ++i) bits |= uint32_t{signs[e / 8 + i]} << (8 * i);
  return bits >> shift;
}

// Other threads may set other bits of a byte that these elements do not fill; it must be zero at first.
inline void store_signs(uint8_t* signs, int64_t e, int n, uint32_t bits) {
  if (n == kLanes && e % 8 == 0) {
    const uint16_t whole = static_cast<uint16_t>(bits);
    std::memcpy(signs + e / 8, &whole, sizeof whole);
    return;
  }
  const uint32_t shifted = (bits & ((1u << n) - 1)) << (e % 8);
  for (int i = 0; shifted >> (8 * i) != 0 && i < 3; ++i)
    __atomic_fetch_or(signs + e / 8 + i, static_cast<uint8_t>(shifted >> (8 * i)), __ATOMIC_RELAXED);
}

}  // namespace ECA_TARGET
}  // namespace eca
