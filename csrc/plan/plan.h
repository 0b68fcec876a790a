// SPDX-License-Identifier: MIT
// L0. The launch plan: a pure function of a call and a device, for the kernels, the tests and
// `python -m eca_cuda.info --plan`. Sizes are elements, numbers of the accumulator's type A, or bytes where named.
#pragma once
#include <string>
#include <vector>

#include "../gates/gate.h"
#include "../problem.h"
#include "../tiling.h"
#include "device.h"

namespace eca {

constexpr int64_t kReserved = 1024;  // bytes of shared memory that the driver takes of each block

enum class Direction : int { kForward, kBackward };

enum class Path : int {
  kNothing,  // no samples or no channels: no kernel touches a map
  kOnePass,  // each map is read once, into the shared memory of the blocks of a cluster: cuda/one_pass.cuh
  kTwoPhase  // each tile is read twice, the second time from the L2 cache: cuda/two_phase.cuh
};

// A cut that a tuning rule or an experiment asks for; 0: the plan's own choice.
struct Choice {
  int blocks;  // of a sample; -1: the two-phase kernel
  int parts;   // of the positions
  int threads;
};

// What a plan depends on, besides the device.
struct Request {
  Problem problem;
  Direction direction;
  bool residual;  // forward: a residual is added; backward: its gradient is wanted (with kRelu)
  bool aligned;   // is_aligned, for all maps
  bool dense;     // is_dense, for all maps
  int half;       // the gate's halo: channels on each side
  GateNeeds needs;
  int64_t numbers;  // GateFacts::numbers
  Choice choice;
  int most_blocks = kMostBlocks;  // larger clusters do not fit the device
  bool batch_invariant = false;   // samples are cut alike in batches of all sizes

  bool relu() const { return (problem.flags & kRelu) != 0; }
  bool backward() const { return direction == Direction::kBackward; }
};

// --- One pass

// The launch bounds of the kernels, which limit the registers of a thread.
constexpr int kOnePassThreads = 512, kOnePassBlocks = 2;

// The maps of which a block keeps its part in shared memory: x and, where there is room, the residual; backward grad_y
// and, where there is room, x.
struct Slabs {
  bool second_sum;  // backward: x has a slab
  bool extra;       // forward: the residual has a slab
  int count;
  int bytes;  // from one slab to the next
};

// Offsets in a block's dynamic shared memory, in bytes; the slabs come first.
struct OnePassLayout {
  int barriers;  // uint64_t[kLoads + kMaxExchanges]: mbarriers
  int arrays;    // A[arrays][stride]: a number for each channel of the block, and for the halo
  int stride;    // in numbers
  int numbers;   // A[GateFacts::numbers]: parameters that are a few numbers
  int scratch;   // A[GateNeeds::scratch]
  int sums;      // A[..]: what other blocks push here
  int parts;     // A[partial_sums]: partial sums of the block's threads
  int total;     // bytes
};

struct OnePassPlan {
  int blocks;     // of a cluster, one per sample
  int parts;      // kRows: blocks that share the positions of a strip; blocks / parts strips share out the channels
  int channels;   // of a block; the last one has what is left
  int positions;  // of a block
  int lanes;      // kPlanes: threads that add up one plane together
  bool straddle;  // vectors straddle planes
  bool bulk;      // slabs are loaded by bulk copies; otherwise by all threads, 16 bytes each
  int blocks_per_multiprocessor;
  Slabs slabs;
  OnePassLayout shared;
};

constexpr int kLoads = 2;         // with a wait each: what the sums read, and the residual
constexpr int kMaxExchanges = 8;  // of a kernel: one for each pad and for add_parts, two for each sums

// Up to so many sums are all-reduced by an all-gather of the blocks' terms; more by reduce-scatter and all-gather.
constexpr int kFewSums = 16;
ECA_HD constexpr int sums_of_block(int count, int blocks) {
  return count <= kFewSums ? count : (count + blocks - 1) / blocks;
}

// kRows: partial sums of each channel that a block leaves in shared memory, if a tile has `columns` vectors per row.
ECA_HD constexpr bool columns_share_warps(int columns) { return columns < 32 && (columns & (columns - 1)) == 0; }
ECA_HD constexpr int parts_of_rows(int threads, int columns) {
  return columns_share_warps(columns) ? threads / 32 : threads / columns;
}

// --- Two phases

// Blocks of 256 threads per multiprocessor: the kernels' launch bounds, which limit the registers of a thread. Backward
// needs more registers.
constexpr int two_phase_blocks(Direction direction) { return direction == Direction::kForward ? 4 : 3; }

// Offsets in a block's dynamic shared memory, in bytes. The reduction and the gate use the same part in turn.
struct TwoPhaseLayout {
  int64_t ticket;  // 16 bytes: the ticket, and whether this block has completed its sample
  int64_t sums;    // A[partial_sums]: partial sums of a tile
  int64_t gate;    // A[gate_numbers]: the gate's memory; -1: it is too large, and lies in global memory
  int64_t total;   // bytes
};

struct TwoPhasePlan {
  int vector;     // elements per load and store: 16 bytes, or one
  bool straddle;  // vectors straddle planes
  int lanes;      // kPlanes: threads that add up one plane together
  Tiling tiling;
  int64_t tickets;       // two per tile of the batch
  int64_t lag;           // tickets of first visits before the first one of a second visit
  int64_t gate_numbers;  // what an executor of the gate needs: arrays, parameters, scratch
  TwoPhaseLayout shared;
};

struct Plan {
  Path path;
  const char* reason;
  int threads;     // of a block
  int64_t blocks;  // of the grid
  OnePassPlan one_pass;
  TwoPhasePlan two_phase;
};

Plan make_plan(const Request& request, const Device& device);

// The two parts of make_plan. plan_one_pass returns null, or the reason why the call does not fit one pass.
const char* plan_one_pass(const Request& request, const Device& device, Plan* plan);
void plan_two_phase(const Request& request, const Device& device, Plan* plan);

// kPlanes: threads that add up a plane together: enough to keep all threads busy, about one per vector at most.
int lanes_for(int64_t planes, int64_t vectors, int threads);

// Numbers that the threads of a block leave in shared memory per sum, for tiles of so many channels.
int64_t partial_sums(const Problem& problem, int64_t channels, int lanes, int vector, int threads);

// Arrays of an executor that the kernel uses, before the gate's own: mean, gate and, backward, grad.
ECA_HD constexpr int kernel_arrays(bool backward) { return backward ? 3 : 2; }

// Whether all runs of a map begin and end at multiples of 16 bytes. True for absent maps (null), here and below.
bool is_aligned(const Problem& problem, const MapView& map);

// Whether the samples of a map are contiguous, and begin and end at multiples of 16 bytes.
bool is_dense(const Problem& problem, const MapView& map);

// --- Tuning rules: cuts that measurements have found to be best, instead of the plan's; one table per process

// Applies to calls of this kind, whether or not they have a residual or a ReLU.
struct Rule {
  Direction direction;
  DType dtype;
  Layout layout;
  int variant;  // -1: any
  int64_t n;    // 0: any
  int64_t c, s;
  Choice choice;
};

void set_tuning(std::vector<Rule> rules);

// The choice of the first rule that applies, or zeros.
Choice tuned(const Problem& problem, Direction direction);

// ECA_CUDA_BATCH_INVARIANT=1: cuts do not depend on the batch size, so a sample has the same bits in every batch.
bool batch_invariance();

// For messages and reports.
std::string describe(const Plan& plan);

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t to) { return ceil_divide(n, to) * to; }

}  // namespace eca
