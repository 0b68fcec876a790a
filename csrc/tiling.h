// SPDX-License-Identifier: MIT
// L0. How a sample is cut into tiles. A channel whose positions lie in several tiles has several partial sums, which
// are added in the order of the tiles: results do not depend on which block or thread computes what.
#pragma once
#include "options.h"

namespace eca {

// Channels [c0, c1) x positions [s0, s1) of one sample.
template <class Index>
struct TileOf {
  Index c0, c1, s0, s1;
};
using Tile = TileOf<int64_t>;

struct Tiling {
  int64_t c, s;                 // of a sample
  int64_t channels, positions;  // of a tile, at least 1 each
  int64_t blocks;               // tiles along the positions: partial sums per channel
  int64_t count;                // tiles of a sample; one for an empty sample

  static Tiling of(int64_t c, int64_t s, int64_t channels, int64_t positions) {
    const int64_t blocks = s > positions ? (s + positions - 1) / positions : 1;
    const int64_t strips = c > channels ? (c + channels - 1) / channels : 1;
    return {c, s, channels, positions, blocks, strips * blocks};
  }

  ECA_HD int64_t block(int64_t i) const { return i % blocks; }  // index of the partial sums that tile i computes

  ECA_HD Tile at(int64_t i) const {
    const int64_t c0 = i / blocks * channels, s0 = block(i) * positions;
    return {c0, c0 + channels < c ? c0 + channels : c, s0, s0 + positions < s ? s0 + positions : s};
  }
};

}  // namespace eca
