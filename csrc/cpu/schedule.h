// SPDX-License-Identifier: MIT
// L1. One forward or backward pass over a batch on the CPU: which thread does what, in which order.
#pragma once
#include <cmath>

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

// Batch norm on a CPU: A[C] each; weight and bias null for 1 and 0. Its forward in training writes mean and var.
template <class A>
struct NormNumbers {
  const A *weight, *bias;
  A *mean, *var;
  double eps;

  A rstd(int64_t c) const { return A(1) / std::sqrt(var[c] + static_cast<A>(eps)); }
  A scale(int64_t c) const { return weight ? weight[c] * rstd(c) : rstd(c); }
  A bias_of(int64_t c) const { return bias ? bias[c] : A(0); }
  // x after batch norm; its mean, if x is one.
  A of(int64_t c, A x) const { return scale(c) * (x - mean[c]) + bias_of(c); }

  // From gates to what batch norm and gate do to x together: x * gate + shift.
  void fold(int64_t channels, A* gate, A* shifts) const {
    for (int64_t c = 0; c < channels; ++c) {
      shifts[c] = (bias_of(c) - scale(c) * mean[c]) * gate[c];
      gate[c] *= scale(c);
    }
  }
};

// norm: null without batch norm.
template <class A>
void run_forward(const Problem& problem, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>* norm,
                 const Parallel& parallel);
template <class A>
void run_backward(const Problem& problem, const GateCall& gate, const BackwardCall& call, const Parallel& parallel);

// norm_schedule.cpp: with the statistics of the batch, and the backward of both kinds. grad_weight, grad_bias: A[C].
template <class A>
void run_norm_forward(const Problem& problem, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>& norm,
                      const Parallel& parallel);
template <class A>
void run_norm_backward(const Problem& problem, const GateCall& gate, const BackwardCall& call,
                       const NormNumbers<A>& norm, A* grad_weight, A* grad_bias, const Parallel& parallel);

}  // namespace eca
