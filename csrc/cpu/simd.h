// SPDX-License-Identifier: MIT
// L1. Pack<A>: 16 lanes of float or double, whatever the width of the registers. Because the number of lanes, the order
// of additions and the rounding of every operation are the same for all instruction sets (the build forbids contraction
// to fused multiply-add), results are bitwise equal on all of them; only exp of single numbers and of float64 is
// libm's, which may choose its instructions by machine.
//
// Included by kernels_*.cpp only, after they have set ECA_TARGET, ECA_VECTOR_BYTES and, where they exist, ECA_F16C
// (hardware float16 conversion) and ECA_MASKS (masked loads and stores). An inline function of the C++ library has the
// same name for every instruction set, and the linker keeps one of them: so those files include the few headers that
// are needed before they set the instruction set, and no others are allowed.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(ECA_F16C) || defined(ECA_MASKS)
#include <immintrin.h>
#endif

namespace eca {
inline namespace ECA_TARGET {

inline constexpr int kLanes = 16;

// For functions that loops call for each pack: calls that are not inlined pass packs through memory.
#define ECA_INLINE __attribute__((always_inline))

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class A>
struct Pack {
  static constexpr int kPerVector = ECA_VECTOR_BYTES / sizeof(A), kVectors = kLanes / kPerVector;
  typedef A Vector __attribute__((vector_size(ECA_VECTOR_BYTES)));
  Vector v[kVectors];

  Pack() = default;
  explicit Pack(A value) {
    for (auto& vector : v) vector = value - Vector{};
  }
};

// The result of a comparison: all bits of a lane are set, or none.
template <class A>
struct Mask {
  decltype(typename Pack<A>::Vector{} < typename Pack<A>::Vector{}) v[Pack<A>::kVectors];
};

#define ECA_LANEWISE(result, expression)                             \
  result r;                                                          \
  for (int i = 0; i < Pack<A>::kVectors; ++i) r.v[i] = (expression); \
  return r

template <class A>
inline Pack<A> operator+(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Pack<A>, a.v[i] + b.v[i]);
}
template <class A>
inline Pack<A> operator-(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Pack<A>, a.v[i] - b.v[i]);
}
template <class A>
inline Pack<A> operator*(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Pack<A>, a.v[i] * b.v[i]);
}
template <class A>
inline Pack<A> operator/(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Pack<A>, a.v[i] / b.v[i]);
}
template <class A>
inline Pack<A> operator-(Pack<A> a) {
  ECA_LANEWISE(Pack<A>, -a.v[i]);
}
template <class A>
inline Mask<A> operator<(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Mask<A>, a.v[i] < b.v[i]);
}
template <class A>
inline Mask<A> operator>(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Mask<A>, a.v[i] > b.v[i]);
}
template <class A>
inline Mask<A> operator<=(Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Mask<A>, a.v[i] <= b.v[i]);
}
template <class A>
inline Pack<A> select(Mask<A> m, Pack<A> a, Pack<A> b) {
  ECA_LANEWISE(Pack<A>, m.v[i] ? a.v[i] : b.v[i]);
}

// First lanes l and l + 8, then l + 4, l + 2, l + 1: the same tree for every register width.
template <class A>
inline A sum(Pack<A> p) {
  typedef A Quarter __attribute__((vector_size(4 * sizeof(A))));
  Quarter q[4];
  std::memcpy(q, &p, sizeof q);
  const Quarter four = (q[0] + q[2]) + (q[1] + q[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// Sets the lanes from n on, 0 <= n <= 16.
template <class A>
inline Mask<A> from_lane(int n) {
  struct Bits {
    A zeros[kLanes];
    uint64_t ones[kLanes * sizeof(A) / 8];
  };
  static constexpr Bits window = [] {
    Bits bits{};
    for (auto& word : bits.ones) word = ~uint64_t{0};
    return bits;
  }();
  Mask<A> mask;
  std::memcpy(&mask, reinterpret_cast<const char*>(&window) + (kLanes - n) * sizeof(A), sizeof mask);
  return mask;
}

// exp to about 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2; a polynomial in r with the coefficients of expf in the Cephes
// library (Moshier), times 2^n in two steps, so that nothing overflows near the largest float.
inline Pack<float> exp(Pack<float> x) {
  using V = Pack<float>;
  const V magic(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const V overflow(88.722839f), underflow(-103.9721f);
  const V clamped = select(x > overflow, overflow, select(x < underflow, underflow, x));
  const V biased = clamped * V(1.44269504f) + magic, n = biased - magic;
  const V r = clamped - n * V(0.693359375f) + n * V(2.12194440e-4f);
  const float coefficients[5] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                 5.0000001201e-1f};
  V p = V(1.9875691500e-4f);
  for (const float c : coefficients) p = p * r + V(c);
  p = p * r * r + r + V(1.0f);
  V low, high;  // 2^floor(n / 2) and 2^(n - floor(n / 2)), written as exponent bits
  for (int i = 0; i < V::kVectors; ++i) {
    typedef int32_t Bits __attribute__((vector_size(ECA_VECTOR_BYTES)));
    Bits exponent = (Bits)biased.v[i] - (Bits)magic.v[i], half = exponent >> 1;
    low.v[i] = (V::Vector)((half + 127) << 23);
    high.v[i] = (V::Vector)((exponent - half + 127) << 23);
  }
  return select(x > overflow, V(__builtin_inff()), select(x < underflow, V(0.0f), p * low * high));
}

// float64 is for gradcheck, not for speed.
inline Pack<double> exp(Pack<double> x) {
  double lane[kLanes];
  std::memcpy(lane, &x, sizeof lane);
  for (double& value : lane) value = __builtin_exp(value);
  std::memcpy(&x, lane, sizeof lane);
  return x;
}

}  // namespace ECA_TARGET
}  // namespace eca
