// SPDX-License-Identifier: MIT
// L1. What the resident kernel is given; resident.cuh says what it does.
#pragma once
#include "../gates/gate.h"
#include "../plan/resident.h"

namespace eca {

// call is a ForwardCall or a BackwardCall.
template <class A, class Call>
struct ResidentArgs {
  Problem problem;
  Call call;
  ResidentPlan plan;
  GateArgs<A> gate_args;
};

}  // namespace eca
