// SPDX-License-Identifier: MIT
// L0. The launch plan: a pure function of a call and a device, the same for the kernels, the tests and
// `python -m eca_cuda.info --plan`. Sizes are elements, numbers of the accumulator's type A, or bytes where it says so.
#pragma once
#include <string>
#include <vector>

#include "../gates/gate.h"
#include "../problem.h"
#include "../tiling.h"
#include "device.h"

namespace eca {

constexpr int64_t kReserved = 1024;  // bytes of shared memory that the driver takes per block

enum class Direction : int { kForward, kBackward };

enum class Path : int {
  kNothing,  // no samples or no channels: no kernel touches a map
  kOnePass,  // each map is read once, into the shared memory of the blocks of a cluster: cuda/one_pass.cuh
  kTwoPhase  // each tile is read twice, the second time from the L2 cache: cuda/two_phase.cuh
};

// What a measurement has found to be best, or an experiment asks for; 0 where the plan may choose.
struct Choice {
  int blocks;  // of a sample; -1: the two-phase kernel
  int parts;   // of the positions
  int threads;
};

// What decides a plan.
struct Request {
  Problem problem;
  Direction direction;
  bool residual;  // forward: a residual is added; backward: its gradient is wanted (with kRelu)
  bool aligned;   // all runs of all maps begin and end at multiples of 16 bytes
  bool dense;     // the runs of all maps follow each other, and samples begin at multiples of 16 bytes
  int half;       // neighbours of a channel that the gate needs on each side
  GateNeeds needs;
  int64_t numbers;  // of the gate's parameters
  Choice choice;
  int most_blocks = kMostBlocks;  // larger clusters have no room
  bool batch_invariant = false;   // a sample is cut alike in batches of every size

  bool relu() const { return (problem.flags & kRelu) != 0; }
  bool backward() const { return direction == Direction::kBackward; }
};

// --- One pass

// Registers of a thread, and so threads of a multiprocessor, as the kernel's launch bounds have it.
constexpr int kOnePassThreads = 512, kOnePassBlocks = 2;

// The maps that a block keeps in shared memory, in this order, the second where there is room: forward x, residual;
// backward grad_y, x.
struct Slabs {
  bool second_sum;  // backward: x
  bool extra;       // forward: the residual
  int count;
  int bytes;  // from one to the next
};

// Offsets in a block's dynamic shared memory, in bytes; the slabs come first.
struct OnePassLayout {
  int barriers;  // uint64_t: one for each load and each exchange
  int arrays;    // A[arrays][stride]: a number for each of the block's channels, with neighbours
  int stride;    // numbers
  int numbers;   // A: parameters that are a few numbers
  int scratch;   // A: of the gate
  int sums;      // A: what other blocks push here
  int parts;     // A: partial sums of the block's threads
  int total;
};

struct OnePassPlan {
  int blocks;     // of a cluster, which has one sample
  int parts;      // kRows: of the positions; blocks / parts share out the channels
  int channels;   // of a block; the last one has what is left
  int positions;  // of a block
  int lanes;      // kPlanes: threads that add up one plane together
  bool straddle;  // vectors straddle planes
  bool bulk;      // one thread asks for a copy of the slab; otherwise all do, 16 bytes each
  int blocks_per_multiprocessor;
  Slabs slabs;
  OnePassLayout shared;
};

constexpr int kLoads = 2;         // waited for one by one: what the sums read, and the residual
constexpr int kMaxExchanges = 8;  // of a kernel: one for each pad and for parts of positions, two for each sums

// Blocks tell each other up to so many sums directly; of more, each block adds up a part first.
constexpr int kFewSums = 16;
ECA_HD constexpr int sums_of_block(int count, int blocks) {
  return count <= kFewSums ? count : (count + blocks - 1) / blocks;
}

// Rows: the numbers that threads leave for each channel, `columns` vectors being as many threads.
ECA_HD constexpr bool columns_share_warps(int columns) { return columns < 32 && (columns & (columns - 1)) == 0; }
ECA_HD constexpr int parts_of_rows(int threads, int columns) {
  return columns_share_warps(columns) ? threads / 32 : threads / columns;
}

// --- Two phases

// Blocks of 256 threads that fit a multiprocessor: what the kernels' launch bounds promise, and so how many registers a
// thread has. Backward holds more pointers and numbers at a time.
constexpr int two_phase_blocks(Direction direction) { return direction == Direction::kForward ? 4 : 3; }

// Where things lie in a block's dynamic shared memory, in bytes. The reduction and the gate take turns.
struct TwoPhaseLayout {
  int64_t ticket;  // int64_t: the ticket, and whether this block was the last of its sample
  int64_t sums;    // A[]: partial sums of a tile
  int64_t gate;    // A[]: the gate's memory; -1: in global memory, because it is too large
  int64_t total;
};

struct TwoPhasePlan {
  int vector;     // elements per load and store: 16 bytes, or one
  bool straddle;  // vectors straddle planes
  int lanes;      // kPlanes: threads that add up one plane together
  Tiling tiling;
  int64_t tickets;  // two per tile of the batch
  int64_t lag;      // first-phase tickets before the first one of the second phase
  int64_t gate_numbers;
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

// The two halves of make_plan. The first returns null where the call fits one pass, or why it does not.
const char* plan_one_pass(const Request& request, const Device& device, Plan* plan);
void plan_two_phase(const Request& request, const Device& device, Plan* plan);

// As many threads for each plane as keep all of them busy, but not more than there are vectors in it.
int lanes_for(int64_t planes, int64_t vectors, int threads);

// Numbers that threads leave to be added up, of tiles of so many channels: planes.cuh, rows.cuh.
int64_t partial_sums(const Problem& problem, int64_t channels, int lanes, int vector, int threads);

// The numbers of A that a gate takes in one block: arrays of mean, gate and in backward grad before its own.
ECA_HD constexpr int kernel_arrays(bool backward) { return backward ? 3 : 2; }

// Whether all runs of a map begin and end at multiples of 16 bytes. Maps that are absent (null) fit anything.
bool is_aligned(const Problem& problem, const Batch& map);

// Whether the runs of a map follow each other without gaps, samples beginning at multiples of 16 bytes.
bool is_dense(const Problem& problem, const Batch& map);

// --- Rules that measurements have found to be best, in place of what the plan would choose: a table of this process

// For calls of exactly this kind, with residual and ReLU or without.
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

// The first rule's choice that is for such a call, or none.
Choice tuned(const Problem& problem, Direction direction);

// Whether sums are cut as if all batches were of one size, so that a sample has the same bits in each of them:
// ECA_CUDA_BATCH_INVARIANT=1.
bool batch_invariance();

// For messages and reports.
const char* variant_name(Variant variant);
std::string describe(const Plan& plan);

constexpr int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t n, int64_t to) { return ceil_divide(n, to) * to; }

}  // namespace eca
