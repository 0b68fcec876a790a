// SPDX-License-Identifier: MIT
// L1. One forward or backward pass over a batch on the CPU: which thread does what, in which order.
#pragma once
#include "../gates/norm.h"
#include "../problem.h"
#include "kernels.h"

namespace eca {

// at::parallel_for or an equivalent: body(begin, end, context) over disjoint parts of [0, count).
struct Parallel {
  int threads;
  void (*run)(int64_t count, void (*body)(int64_t, int64_t, void*), void* context);
};

// A gate on the CPU: GateArgs<A>, and the number of A that it needs per sample.
struct GateCall {
  const void* args;
  int64_t memory;
};

// The parameters and statistics of batch norm.
template <class A>
struct NormNumbers {
  const A *weight, *bias;  // A[C]; null for 1 and 0
  A *mean, *var;           // A[C]; the forward pass in training writes them
  double eps;

  ChannelNorm<A> operator[](int64_t c) const {
    return ChannelNorm<A>::of(weight ? weight[c] : A(1), bias ? bias[c] : A(0), mean[c], var[c], static_cast<A>(eps));
  }
  A of(int64_t c, A x) const { return (*this)[c].normalized(x); }

  // gate: A[C], becomes the factor of x; shifts: A[C], becomes the summand, of batch norm and gate together.
  void fold(int64_t channels, A* gate, A* shifts) const {
    for (int64_t c = 0; c < channels; ++c) {
      const ChannelNorm<A> norm = (*this)[c];
      shifts[c] = norm.shift() * gate[c];
      gate[c] *= norm.scale;
    }
  }
};

// norm: null without batch norm.
template <class A>
void run_forward(const Problem& problem, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>* norm,
                 const Parallel& parallel);
template <class A>
void run_backward(const Problem& problem, const GateCall& gate, const BackwardCall& call, const Parallel& parallel);

// norm_schedule.cpp: forward with the statistics of x, and backward with any statistics. grad_weight, grad_bias: A[C].
template <class A>
void run_norm_forward(const Problem& problem, const GateCall& gate, const ForwardCall& call, const NormNumbers<A>& norm,
                      const Parallel& parallel);
template <class A>
void run_norm_backward(const Problem& problem, const GateCall& gate, const BackwardCall& call,
                       const NormNumbers<A>& norm, A* grad_weight, A* grad_bias, const Parallel& parallel);

}  // namespace eca
