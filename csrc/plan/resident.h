// SPDX-License-Identifier: MIT
// L0. The launch plan of the resident kernel (cuda/resident.cuh): how many blocks share a sample, and what lies where
// in their shared memory. As plan.h, a pure function.
#pragma once
#include "../gates/gate.h"
#include "plan.h"

namespace eca {

// What a measurement has found to be best, or an experiment asks for; zero where the plan may choose.
struct Choice {
  int ranks;  // -1: the two-phase kernel
  int stages, threads;
  int lanes;        // threads to a plane; -1: groups of planes to a thread
  int piece;        // bytes of a slab that arrive together
  int evict_first;  // EvictFirst; -1: neither
  int persistent;   // 1: clusters that take samples in turn; -1: one for each sample
};

// Whether sums are cut as if all batches were of one size, so that a sample has the same bits in each of them:
// ECA_CUDA_BATCH_INVARIANT=1.
bool batch_invariance();

struct ResidentRequest {
  Request request;
  bool dense;           // the runs of all maps follow each other, at 16-byte boundaries per sample
  Exchanges exchanges;  // gates/gate.h
  Weights weights;
  Choice choice;
  int most_ranks = kMostRanks;  // larger clusters have no room
  bool batch_invariant = batch_invariance();
};

// What the L2 cache gives up before all else. Maps that are read are not needed again soon; what is written, the next
// layer reads.
enum EvictFirst : int { kRead = 1, kWritten = 2 };

// How slabs get into shared memory: cuda/copies.cuh.
enum class Copies : int { kBulk, kThreads };

// Steps of a gate in which blocks tell each other something, at most; nine are the most of today's gates.
constexpr int kMaxExchanges = 12;
constexpr int kMaxStages = 4;
constexpr int64_t kReserved = 1024;  // bytes of shared memory that the driver takes per block
constexpr int kMaxPieces = 8;        // of a slab, which arrive one by one

// Offsets in bytes. Numbers are of the accumulator's type.
struct ResidentLayout {
  int barriers;   // uint64_t: 2 per exchange, and kMaxPieces per stage
  int part;       // cuda/cluster.cuh's Part
  int warps;      // one number per warp
  int numbers;    // per own channel: sum, then mean; gate; backward: shift
  int exchanges;  // what other blocks push here for one sample; twice, if there are others
  int parts;      // partial sums of a tile; where planes are added up in groups, there are none
  int partial;    // kRows: this block's sums of all channels
  int scratch;    // of the gate, where parts and partial were
  int kept;       // own columns of the gate's largest parameter
  int slabs;
  int total;
};

struct ResidentPlan {
  bool possible;
  const char* reason;  // why not
  Copies copies;
  int evict_first;  // EvictFirst, of slabs that are read and of maps that are written
  bool straddle;    // vectors straddle planes: cuda/dense.cuh
  bool parked;      // backward: x, too, comes into shared memory, behind the slab
  bool persistent;  // no more clusters than run at once, which take samples in turn; otherwise one for each sample
  int ranks;        // blocks of a cluster, which share a sample
  int stages;       // slabs of a block
  int threads, vector;
  int lanes;     // threads that add up one plane together; 0: each adds up `group` planes
  int group;     // planes that fill whole vectors
  int runs;      // planes or rows of a slab
  int channels;  // that a block owns
  int slab_bytes, piece_shift, exchange_numbers;
  int kept_rows, kept_parameter;  // of the parameter that stays in shared memory; 0: none
  int64_t clusters;               // of the grid; of a persistent one, at most
  int64_t shared_limit;           // what kernels ask for: the most a block can have
  ResidentLayout shared;
  double floor_us, predicted_us;  // 0 where the device's copy rate is not known
};

ResidentPlan make_resident_plan(const ResidentRequest& request, const Device& device);
std::string describe(const ResidentPlan& plan);

}  // namespace eca
