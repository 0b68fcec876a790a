// SPDX-License-Identifier: MIT
// L1. Visits every element of a tile once, 16 at a time, in all maps at once, with the K numbers of its channel:
// body(pointers, i, lanes, e, numbers) handles elements i .. i + lanes from each pointer, which are elements
// e .. e + lanes of the sample, as signs.h counts them. length: of a plane or row. maps[0] is the output: packs of
// planes are aligned to it, because a store that crosses a cache line costs two.
#pragma once
#include "reduce.h"

namespace eca {
inline namespace ECA_TARGET {

template <class T, Layout L>
struct Walk;

template <class T>
struct Walk<T, Layout::kPlanes> {
  using A = Accumulator<T>;
  using P = Pack<A>;

  // Contiguous planes of at least 16 positions are visited as one run, in which a pack may hold the end of one plane
  // and the start of the next; others are visited one by one.
  template <int M, int K, class Body>
  static void each(Tile tile, int64_t length, const SampleView (&maps)[M], const void* const (&numbers)[K], Body body) {
    const int64_t size = tile.s1 - tile.s0;
    bool dense = size >= kLanes;
    for (const SampleView& map : maps) dense = dense && (!map.data || map.stride == size);
    const int64_t together = dense ? tile.c1 - tile.c0 : 1;
    for (int64_t c = tile.c0; c < tile.c1; c += together) {
      T* p[M];
      for (int m = 0; m < M; ++m) p[m] = static_cast<T*>(maps[m].data) + c * maps[m].stride + tile.s0;
      run(p, c * length + tile.s0, size, together, Numbers<K>{numbers, c}, body);
    }
  }

 private:
  template <int K>
  struct Numbers {
    const void* const (&data)[K];
    int64_t first;
    ECA_INLINE void at(int64_t c, P (&out)[K]) const {
      for (int k = 0; k < K; ++k) out[k] = data[k] ? P(static_cast<const A*>(data[k])[first + c]) : P(0);
    }
  };

  template <int K, class Body>
  static void run(T* const* p, int64_t first, int64_t size, int64_t planes, Numbers<K> numbers, Body body) {
    const int64_t end = size * planes;
    const int64_t past = reinterpret_cast<uintptr_t>(p[0]) / sizeof(T) % kLanes;
    int64_t i = past ? kLanes - past : 0;
    if (i > size) i = size;
    P here[K], next[K];
    numbers.at(0, here);
    if (i > 0) body(p, 0, static_cast<int>(i), first, here);
    for (int64_t c = 0; c < planes; ++c) {
      const int64_t plane_end = (c + 1) * size;
      for (; i + kLanes <= plane_end; i += kLanes) body(p, i, kLanes, first + i, here);
      if (c + 1 == planes) break;
      numbers.at(c + 1, next);
      if (i < plane_end) {
        const Mask<A> is_next = from_lane<A>(static_cast<int>(plane_end - i));
        P both[K];
        for (int k = 0; k < K; ++k) both[k] = select(is_next, next[k], here[k]);
        body(p, i, kLanes, first + i, both);
        i += kLanes;
      }
      for (int k = 0; k < K; ++k) here[k] = next[k];
    }
    if (i < end) body(p, i, static_cast<int>(end - i), first + i, here);
  }
};

template <class T>
struct Walk<T, Layout::kRows> {
  using A = Accumulator<T>;
  using P = Pack<A>;

  template <int M, int K, class Body>
  static void each(Tile tile, int64_t length, const SampleView (&maps)[M], const void* const (&numbers)[K], Body body) {
    for (int64_t s = tile.s0; s < tile.s1; ++s) {
      T* p[M];
      for (int m = 0; m < M; ++m) p[m] = static_cast<T*>(maps[m].data) + s * maps[m].stride;
      for (int64_t c = tile.c0; c < tile.c1; c += kLanes) {
        const int n = static_cast<int>(tile.c1 - c < kLanes ? tile.c1 - c : kLanes);
        P of_channels[K];
        for (int k = 0; k < K; ++k) of_channels[k] = numbers[k] ? read(static_cast<const A*>(numbers[k]) + c, n) : P(0);
        body(p, c, n, s * length + c, of_channels);
      }
    }
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
