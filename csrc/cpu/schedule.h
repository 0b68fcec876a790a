// SPDX-License-Identifier: MIT
// L1. One forward or backward pass over a batch on the CPU: which thread does what, in which order.
#pragma once
#include "kernels.h"

namespace eca {

// at::parallel_for, or something like it: body(begin, end, context) over disjoint parts of [0, count).
struct Parallel {
  int threads;
  void (*run)(int64_t count, void (*body)(int64_t, int64_t, void*), void* context);
};

// A feature map of N samples; strides in elements. data is null where the map is absent.
struct Batch {
  void* data;
  int64_t sample_stride, run_stride;
};

struct Problem {
  int64_t n, c, s;
  DType dtype;
  Layout layout;
  Variant variant;
  int64_t flags;
  const void* gate_args;  // GateArgs<A>
  int64_t gate_scratch;   // numbers of A that the gate and its executor need per sample
};

struct ForwardCall {
  Batch x, residual, y;
  void* mean;  // A[N, C], kept for backward; null if nobody needs it
};

struct BackwardCall {
  Batch grad_y, x, y, grad_x, grad_residual;
  const void* mean;
  void* record;  // A[N, record_size]
  void* field;   // A[N, C]
  int64_t record_size;
};

void run_forward(const Problem& problem, const ForwardCall& call, const Parallel& parallel);
void run_backward(const Problem& problem, const BackwardCall& call, const Parallel& parallel);

}  // namespace eca
