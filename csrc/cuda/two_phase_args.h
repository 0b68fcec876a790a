// SPDX-License-Identifier: MIT
// L1. What the two-phase kernel is given; two_phase.cuh says what it does.
#pragma once
#include "../gates/gate.h"
#include "../plan/plan.h"

namespace eca {

// call is a ForwardCall or a BackwardCall. All pointers but those in it are to the workspace.
template <class A, class Call>
struct TwoPhaseArgs {
  Problem problem;
  Call call;
  Tiling tiling;
  SharedLayout shared;
  int lanes;
  int64_t tickets, lag;
  GateArgs<A> gate_args;
  int64_t gate_numbers;  // that a gate needs, in `memory` if not in shared memory
  unsigned long long* next_ticket;
  unsigned* arrived;         // [N]: tiles whose first visit is over; one more when the gate is there
  A *partial, *mean;         // [N, blocks, C], [N, C]
  A *gate, *shift, *memory;  // [N, C], [N, C] (backward), [min(N, grid), gate_numbers]
};

}  // namespace eca
