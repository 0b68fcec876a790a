// SPDX-License-Identifier: MIT
// L1. Sums over the positions of a tile, per channel, in an order that only the shape decides. A term is called as
// term(run, i, lanes): elements i .. i + lanes of a run, where a run is a plane (kPlanes) or a row (kRows).
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

// Along each plane: four running packs, so that additions don't wait for each other.
template <class A>
struct Reduce<A, Layout::kPlanes> {
  template <class Term>
  static void sums(Tile tile, A* out, Term term) {
    for (int64_t c = tile.c0; c < tile.c1; ++c) {
      Pack<A> total[4] = {Pack<A>(0), Pack<A>(0), Pack<A>(0), Pack<A>(0)};
      int64_t i = tile.s0;
      for (; i + 4 * kLanes <= tile.s1; i += 4 * kLanes) {
        for (int u = 0; u < 4; ++u) total[u] = total[u] + term(c, i + u * kLanes, kLanes);
      }
      for (; i + kLanes <= tile.s1; i += kLanes) total[0] = total[0] + term(c, i, kLanes);
      const int left = static_cast<int>(tile.s1 - i);
      if (left > 0 && tile.s1 - tile.s0 >= kLanes) {  // one whole pack that ends with the run, less what is counted
        const Pack<A> last = term(c, tile.s1 - kLanes, kLanes);
        total[1] = total[1] + select(from_lane<A>(kLanes - left), last, Pack<A>(0));
      } else if (left > 0) {
        total[1] = total[1] + term(c, i, left);
      }
      out[c] = sum((total[0] + total[1]) + (total[2] + total[3]));
    }
  }
};

// Down the rows: eight of them are added up in registers per visit of the running sums in the first-level cache.
template <class A>
struct Reduce<A, Layout::kRows> {
  static constexpr int kRowsAtOnce = 8;

  template <class Term>
  static void sums(Tile tile, A* out, Term term) {
    for (int64_t c = tile.c0; c < tile.c1; ++c) out[c] = A(0);
    int64_t s = tile.s0;
    for (; s + kRowsAtOnce <= tile.s1; s += kRowsAtOnce) {
      along(tile, out, [&](int64_t c, int n) {
        Pack<A> t[kRowsAtOnce];
        for (int r = 0; r < kRowsAtOnce; ++r) t[r] = term(s + r, c, n);
        return ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
      });
    }
    for (; s < tile.s1; ++s) along(tile, out, [&](int64_t c, int n) { return term(s, c, n); });
  }

 private:
  template <class Value>
  static void along(Tile tile, A* out, Value value) {
    int64_t c = tile.c0;
    for (; c + kLanes <= tile.c1; c += kLanes) store(out + c, load(out + c) + value(c, kLanes));
    if (c < tile.c1) {
      const int n = static_cast<int>(tile.c1 - c);
      store_partial(out + c, load_partial(out + c, n) + value(c, n), n);
    }
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
