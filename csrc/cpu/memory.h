// SPDX-License-Identifier: MIT
// L1. Loads and stores of packs, whole and partial, for all four dtypes. 16-bit numbers become float when loaded and
// are rounded to nearest, ties to even, when stored.
#pragma once
#include "simd.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
inline Pack<A> load(const A* p) {
  Pack<A> r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
template <class A>
inline void store(A* p, Pack<A> value) {
  std::memcpy(p, &value, sizeof value);
}

typedef uint16_t Bits16 __attribute__((vector_size(ECA_VECTOR_BYTES / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(ECA_VECTOR_BYTES)));

inline Pack<float> load(const BFloat16* p) {
  Pack<float> r;
  for (int i = 0; i < Pack<float>::kVectors; ++i) {
    Bits16 half;
    std::memcpy(&half, p + i * Pack<float>::kPerVector, sizeof half);
    r.v[i] = (Pack<float>::Vector)(__builtin_convertvector(half, Bits32) << 16);
  }
  return r;
}
inline void store(BFloat16* p, Pack<float> value) {
  for (int i = 0; i < Pack<float>::kVectors; ++i) {
    const Bits32 bits = (Bits32)value.v[i];
    const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits32 nan = (Bits32)(value.v[i] != value.v[i]);
    const Bits16 half = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Bits16);
    std::memcpy(p + i * Pack<float>::kPerVector, &half, sizeof half);
  }
}

#if defined(ECA_F16C) && ECA_VECTOR_BYTES == 64
inline Pack<float> load(const Half* p) {
  Pack<float> r;
  r.v[0] = (Pack<float>::Vector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));
  return r;
}
inline void store(Half* p, Pack<float> value) {
  _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph(0xffff, (__m512)value.v[0], _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(ECA_F16C)
inline Pack<float> load(const Half* p) {
  Pack<float> r;
  for (int i = 0; i < 2; ++i) {
    r.v[i] = (Pack<float>::Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * i)));
  }
  return r;
}
inline void store(Half* p, Pack<float> value) {
  for (int i = 0; i < 2; ++i) {
    _mm_storeu_si128((__m128i*)(p + 8 * i), _mm256_cvtps_ph((__m256)value.v[i], _MM_FROUND_TO_NEAREST_INT));
  }
}
#else
// Without hardware conversion. In: shift the 15 bits into place and multiply by 2^112, which corrects the exponent's
// bias and makes subnormals right; Inf and NaN get the full exponent. Out: the same in reverse, rounding by adding
// half of the last kept bit; below 2^-14, adding 0.5 lets the float adder align and round the subnormal.
inline Pack<float> load(const Half* p) {
  Pack<float> r;
  for (int i = 0; i < Pack<float>::kVectors; ++i) {
    using Vector = Pack<float>::Vector;
    Bits16 half;
    std::memcpy(&half, p + i * Pack<float>::kPerVector, sizeof half);
    const Bits32 bits = __builtin_convertvector(half, Bits32), magnitude = (bits & 0x7fff) << 13;
    const Bits32 special = (Bits32)(magnitude >= (0x7c00u << 13)) & 0x7f800000;
    const Bits32 quiet = (Bits32)(magnitude > (0x7c00u << 13)) & 0x00400000;
    const Bits32 scaled = (Bits32)((Vector)magnitude * 0x1p112f);
    r.v[i] = (Vector)(scaled | special | quiet | ((bits & 0x8000) << 16));
  }
  return r;
}
inline void store(Half* p, Pack<float> value) {
  for (int i = 0; i < Pack<float>::kVectors; ++i) {
    using Vector = Pack<float>::Vector;
    const Bits32 bits = (Bits32)value.v[i], sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    const Bits32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const Bits32 subnormal = (Bits32)((Vector)magnitude + 0.5f) - 0x3f000000;
    const Bits32 is_small = (Bits32)(magnitude < (113u << 23)), is_nan = (Bits32)(magnitude > 0x7f800000);
    const Bits32 is_large = (Bits32)(magnitude >= 0x477ff000);  // rounds to 65536 or more
    Bits32 out = (is_small & subnormal) | (~is_small & normal);
    out = (is_large & 0x7c00) | (~is_large & out);
    out = (is_nan & (0x7e00 | ((bits >> 13) & 0x3ff))) | (~is_nan & out);
    const Bits16 half = __builtin_convertvector(out | sign, Bits16);
    std::memcpy(p + i * Pack<float>::kPerVector, &half, sizeof half);
  }
}
#endif

// The first n of 16 lanes, 0 < n < 16; the other lanes are zero in registers and untouched in memory.
template <class T>
inline Pack<Accumulator<T>> load_partial(const T* p, int n) {
  T buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}
template <class T>
inline void store_partial(T* p, Pack<Accumulator<T>> value, int n) {
  T buffer[kLanes];
  store(buffer, value);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

#ifdef ECA_MASKS
inline Pack<float> load_partial(const float* p, int n) {
  Pack<float> r;
  r.v[0] = (Pack<float>::Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  return r;
}
inline void store_partial(float* p, Pack<float> value, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)value.v[0]);
}
#endif

// Non-temporal stores, or plain ones where there are none: they neither read the memory first nor displace what is in
// the caches. p must be aligned to a pack; end_streaming makes the stores visible to other threads.
#if defined(ECA_F16C)
inline void stream(void* p, __m256i value) { _mm256_stream_si256(static_cast<__m256i*>(p), value); }
#if defined(ECA_MASKS)
inline void stream(void* p, __m512i value) { _mm512_stream_si512(static_cast<__m512i*>(p), value); }
#endif
template <size_t Bytes>
struct Chunk;
template <>
struct Chunk<32> {
  typedef __m256i type;
};
template <>
struct Chunk<64> {
  typedef __m512i type;
};

template <class T>
inline void store_streaming(T* p, Pack<Accumulator<T>> value) {
  constexpr size_t kBytes = kLanes * sizeof(T) < ECA_VECTOR_BYTES ? kLanes * sizeof(T) : ECA_VECTOR_BYTES;
  using Vector = typename Chunk<kBytes>::type;
  T packed[kLanes];
  store(packed, value);
  for (size_t at = 0; at < sizeof packed; at += kBytes) {
    Vector vector;
    std::memcpy(&vector, reinterpret_cast<const char*>(packed) + at, kBytes);
    stream(reinterpret_cast<char*>(p) + at, vector);
  }
}
inline void end_streaming() { _mm_sfence(); }
#else
template <class T>
inline void store_streaming(T* p, Pack<Accumulator<T>> value) {
  store(p, value);
}
inline void end_streaming() {}
#endif

}  // namespace ECA_TARGET
}  // namespace eca
