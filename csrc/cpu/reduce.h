// SPDX-License-Identifier: MIT
// L1. Sums over the positions of a tile, per channel, in an order that depends on the shape alone. term(run, i, lanes,
// out) sets out to K packs of elements i .. i + lanes of a run, which is a plane (kPlanes) or a row (kRows).
#pragma once
#include "kernels.h"
#include "memory.h"

namespace eca {
inline namespace ECA_TARGET {

template <class T>
inline Pack<Accumulator<T>> read(const T* p, int lanes) {
  return lanes == kLanes ? load(p) : load_partial(p, lanes);
}
template <class T>
inline void write(T* p, Pack<Accumulator<T>> value, int lanes) {
  lanes == kLanes ? store(p, value) : store_partial(p, value, lanes);
}

template <class A, Layout L>
struct Reduce;

// Along each plane, with four running packs, so that additions do not depend on each other.
template <class A>
struct Reduce<A, Layout::kPlanes> {
  // out[k][c] = the sum of terms k of channel c.
  template <int K, class Term>
  static void sums(Tile tile, A* const (&out)[K], Term term) {
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      Pack<A> total[K][4];
      for (auto& of_term : total)
        for (auto& pack : of_term) pack = Pack<A>(0);
      int64_t i = tile.s0;
      Pack<A> terms[K];
      for (; i + 4 * kLanes <= tile.s1; i += 4 * kLanes) {
        for (int u = 0; u < 4; ++u) {
          term(c, i + u * kLanes, kLanes, terms);
          for (int k = 0; k < K; ++k) total[k][u] = total[k][u] + terms[k];
        }
      }
      for (; i + kLanes <= tile.s1; i += kLanes) {
        term(c, i, kLanes, terms);
        for (int k = 0; k < K; ++k) total[k][0] = total[k][0] + terms[k];
      }
      const int left = static_cast<int>(tile.s1 - i);
      if (left > 0 &&
          tile.s1 - tile.s0 >= kLanes) {  // a whole pack that ends with the run, without the lanes already counted
        term(c, tile.s1 - kLanes, kLanes, terms);
        const Mask<A> uncounted = from_lane<A>(kLanes - left);
        for (int k = 0; k < K; ++k) total[k][1] = total[k][1] + select(uncounted, terms[k], Pack<A>(0));
      } else if (left > 0) {
        term(c, i, left, terms);
        const Mask<A> beyond = from_lane<A>(left);
        for (int k = 0; k < K; ++k) total[k][1] = total[k][1] + select(beyond, Pack<A>(0), terms[k]);
      }
      for (int k = 0; k < K; ++k) out[k][c] = sum((total[k][0] + total[k][1]) + (total[k][2] + total[k][3]));
    }
  }
};

// Down the rows: eight of them are added up in registers before the running sums, in the L1 cache, are updated.
template <class A>
struct Reduce<A, Layout::kRows> {
  static constexpr int kRowsAtOnce = 8;

  template <int K, class Term>
  static void sums(Tile tile, A* const (&out)[K], Term term) {
    for (int64_t c = tile.c0; c < tile.c1; ++c)
      for (int k = 0; k < K; ++k) out[k][c] = A(0);
    int64_t s = tile.s0;
    for (; s + kRowsAtOnce <= tile.s1; s += kRowsAtOnce) {
      along(tile, out, [&](int64_t c, int n, Pack<A>(&value)[K]) {
        Pack<A> t[kRowsAtOnce][K];
        for (int r = 0; r < kRowsAtOnce; ++r) term(s + r, c, n, t[r]);
        for (int k = 0; k < K; ++k)
          value[k] = ((t[0][k] + t[1][k]) + (t[2][k] + t[3][k])) + ((t[4][k] + t[5][k]) + (t[6][k] + t[7][k]));
      });
    }
    for (; s < tile.s1; ++s) along(tile, out, [&](int64_t c, int n, Pack<A>(&value)[K]) { term(s, c, n, value); });
  }

 private:
  template <int K, class Value>
  static void along(Tile tile, A* const (&out)[K], Value value) {
    for (int64_t c = tile.c0; c < tile.c1; c += kLanes) {
      const int n = static_cast<int>(tile.c1 - c < kLanes ? tile.c1 - c : kLanes);
      Pack<A> of_rows[K];
      value(c, n, of_rows);
      for (int k = 0; k < K; ++k) write(out[k] + c, read(out[k] + c, n) + of_rows[k], n);
    }
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
