// SPDX-License-Identifier: MIT
// L1. Visits every element of a tile once, 16 at a time, each with the numbers of its channel. Elements are visited
// where they lie in all maps at once: body(pointers, i, lanes, gate, shift) handles elements i .. i + lanes of each
// pointer. maps[0] is the output: packs are aligned to it, because a store that crosses a cache line costs two.
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

  // Dense planes of at least 16 positions are one run, in which a pack may hold the end of one plane and the start of
  // the next; others are visited one by one.
  template <int N, class Body>
  static void each(Tile tile, const Map (&maps)[N], const void* gate, const void* shift, Body body) {
    const int64_t size = tile.s1 - tile.s0;
    bool dense = size >= kLanes;
    for (const Map& map : maps) dense = dense && (!map.data || map.stride == size);
    const int64_t together = dense ? tile.c1 - tile.c0 : 1;
    for (int64_t c = tile.c0; c < tile.c1; c += together) {
      T* p[N];
      for (int m = 0; m < N; ++m) p[m] = static_cast<T*>(maps[m].data) + c * maps[m].stride + tile.s0;
      run(p, size, together, Numbers{gate, c}, Numbers{shift, c}, body);
    }
  }

 private:
  struct Numbers {
    const void* data;
    int64_t first;
    P at(int64_t c) const { return data ? P(static_cast<const A*>(data)[first + c]) : P(0); }
  };

  template <class Body>
  static void run(T* const* p, int64_t size, int64_t planes, Numbers gates, Numbers shifts, Body body) {
    const int64_t end = size * planes;
    const int64_t past = reinterpret_cast<uintptr_t>(p[0]) / sizeof(T) % kLanes;
    int64_t i = past ? kLanes - past : 0;
    if (i > size) i = size;
    P gate = gates.at(0), shift = shifts.at(0);
    if (i > 0) body(p, 0, static_cast<int>(i), gate, shift);
    for (int64_t c = 0; c < planes; ++c) {
      const int64_t plane_end = (c + 1) * size;
      for (; i + kLanes <= plane_end; i += kLanes) body(p, i, kLanes, gate, shift);
      if (c + 1 == planes) break;
      const P next_gate = gates.at(c + 1), next_shift = shifts.at(c + 1);
      if (i < plane_end) {
        const Mask<A> next = from_lane<A>(static_cast<int>(plane_end - i));
        body(p, i, kLanes, select(next, next_gate, gate), select(next, next_shift, shift));
        i += kLanes;
      }
      gate = next_gate;
      shift = next_shift;
    }
    if (i < end) body(p, i, static_cast<int>(end - i), gate, shift);
  }
};

template <class T>
struct Walk<T, Layout::kRows> {
  using A = Accumulator<T>;
  using P = Pack<A>;

  template <int N, class Body>
  static void each(Tile tile, const Map (&maps)[N], const void* gate, const void* shift, Body body) {
    const auto numbers = [](const void* data, int64_t c, int n) {
      return data ? read(static_cast<const A*>(data) + c, n) : P(0);
    };
    for (int64_t s = tile.s0; s < tile.s1; ++s) {
      T* p[N];
      for (int m = 0; m < N; ++m) p[m] = static_cast<T*>(maps[m].data) + s * maps[m].stride;
      int64_t c = tile.c0;
      for (; c + kLanes <= tile.c1; c += kLanes) {
        body(p, c, kLanes, numbers(gate, c, kLanes), numbers(shift, c, kLanes));
      }
      if (c < tile.c1) {
        const int n = static_cast<int>(tile.c1 - c);
        body(p, c, n, numbers(gate, c, n), numbers(shift, c, n));
      }
    }
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
