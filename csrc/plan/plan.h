// SPDX-License-Identifier: MIT
// L0. The launch plan: a pure function of a problem and a device, the same for the kernels, the tests and
// `python -m eca_cuda.info --plan`. Sizes are elements, numbers of the accumulator's type A, or bytes where it says so.
#pragma once
#include <string>

#include "../problem.h"
#include "../tiling.h"
#include "device.h"

namespace eca {

enum class Direction : int { kForward, kBackward };

// Blocks of 256 threads that fit a multiprocessor: what the kernels' launch bounds promise, and so how many registers a
// thread has. Backward holds more pointers and numbers at a time.
constexpr int resident_blocks(Direction direction) { return direction == Direction::kForward ? 4 : 3; }

// What decides a plan.
struct Request {
  Problem problem;
  Direction direction;
  bool residual;         // forward: a residual is added; backward: its gradient is wanted (with kRelu)
  int64_t alignment;     // bytes, a power of two: all runs of all maps begin and end at multiples of it
  int64_t kernel_size;   // of the gate's convolution
  int64_t gate_scratch;  // numbers that the gate needs, see gates/gate.h
};

// Where things lie in a block's dynamic shared memory, in bytes. The reduction and the gate take turns.
struct SharedLayout {
  int64_t ticket;  // int64_t: the ticket, and whether this block was the last of its sample
  int64_t warps;   // A[32]: one number per warp
  int64_t sums;    // A[]: partial sums of a tile
  int64_t gate;    // A[]: padded copies and scratch of the gate; -1: in global memory, because they are too large
  int64_t total;
};

enum class Path : int {
  kNothing,  // no samples or no channels: no kernel touches a map
  kTwoPhase  // each tile is read twice, the second time from the L2 cache: cuda/two_phase.cuh
};

struct Plan {
  Path path;
  const char* reason;  // why this path
  int vector;          // elements per load and store
  int threads;         // of a block
  int lanes;           // kPlanes: threads that add up one plane together
  Tiling tiling;
  int64_t tickets;  // two per tile of the batch
  int64_t lag;      // first-phase tickets before the first one of the second phase
  int64_t blocks;   // of the grid
  SharedLayout shared;
  int64_t gate_numbers;  // numbers of A that the gate's executor needs per block

  // Predictions; nothing is decided by them. The times are 0 where the device's copy rate is not known.
  int64_t floor_bytes;   // what must move: each map once
  int64_t memory_bytes;  // what moves between memory and L2
  int64_t l2_bytes;      // what moves between L2 and the multiprocessors
  double floor_us, predicted_us;
};

// The largest power of two (1 to 16 bytes) that divides the addresses and strides of a map and the length of its runs.
// Maps that are absent (null) fit anything.
int64_t alignment_of(const Problem& problem, const Batch& map);

// Whether the runs of a map follow each other without gaps, samples beginning at multiples of 16 bytes.
bool is_dense(const Problem& problem, const Batch& map);

// Vector widths that kernels exist for, in elements, widest first, closed by 1.
struct Widths {
  int elements[3];
};
Widths widths_of(DType dtype);
int vector_of(const Problem& problem, int64_t alignment);  // elements

// How many feature maps must move between memory and multiprocessors.
int maps_moved(const Request& request);

// For messages and reports.
const char* variant_name(Variant variant);
std::string describe(const Plan& plan);

Plan make_plan(const Request& request, const Device& device);

}  // namespace eca
