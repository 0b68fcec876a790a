// SPDX-License-Identifier: MIT
// L1. One forward or backward pass over a batch on the CPU: which thread does what, in which order.
#pragma once
#include "../problem.h"
#include "kernels.h"

namespace eca {

// at::parallel_for, or something like it: body(begin, end, context) over disjoint parts of [0, count).
struct Parallel {
  int threads;
  void (*run)(int64_t count, void (*body)(int64_t, int64_t, void*), void* context);
};

// A gate on the CPU: GateArgs<A>, and the numbers of A that it needs per sample.
struct GateCall {
  const void* args;
  int64_t memory;
};

void run_forward(const Problem& problem, const GateCall& gate, const ForwardCall& call, const Parallel& parallel);
void run_backward(const Problem& problem, const GateCall& gate, const BackwardCall& call, const Parallel& parallel);

}  // namespace eca
