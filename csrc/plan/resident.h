// SPDX-License-Identifier: MIT
// L0. The launch plan of the resident kernel (cuda/resident.cuh): how many blocks share a sample, and what lies where
// in their shared memory. As plan.h, a pure function.
#pragma once
#include "plan.h"

namespace eca {

struct ResidentRequest {
  Request request;
  bool dense;                           // the resident map's runs follow each other, at 16-byte boundaries per sample
  int64_t padded_numbers, sum_numbers;  // gates/gate.h's Exchanges
  int most_ranks = 16;                  // larger clusters have no room
};

// Steps of a gate in which blocks tell each other something, at most; nine are the most of today's gates.
constexpr int kMaxExchanges = 12;

// Offsets in bytes. Numbers are of the accumulator's type.
struct ResidentLayout {
  int64_t barriers;   // uint64_t[stages + 2 per exchange]
  int64_t warps;      // one number per warp
  int64_t parts;      // partial sums of a tile
  int64_t numbers;    // four numbers per own channel: sum, mean, gate, shift
  int64_t partial;    // kRows: this block's sums of all channels
  int64_t exchanges;  // twice what other blocks push here for one sample
  int64_t scratch;    // of the gate
  int64_t slabs;
  int64_t total;
};

struct ResidentPlan {
  bool possible;
  const char* reason;  // why not
  int ranks;           // blocks of a cluster, which share a sample
  int stages;          // slabs of a block
  int threads, vector, lanes;
  int64_t runs;      // planes or rows of a slab
  int64_t channels;  // that a block owns
  int64_t slab_bytes, exchange_numbers;
  int64_t clusters;      // of the grid
  int64_t shared_limit;  // what kernels ask for: the most a block can have
  ResidentLayout shared;
  double floor_us, predicted_us;  // 0 where the device's copy rate is not known
};

ResidentPlan make_resident_plan(const ResidentRequest& request, const Device& device);
std::string describe(const ResidentPlan& plan);

}  // namespace eca
