// SPDX-License-Identifier: MIT
// L1. The arguments of the kernels. Call is ForwardCall or BackwardCall.
#pragma once
#include "../plan/plan.h"

namespace eca {

// A parameter or its gradient, dtype[count * taps]: number [r, c] is the middle one of `taps` elements at r * row +
// c * step. A parameter of a few numbers is one row.
struct ParameterView {
  void* data;  // null: absent
  DType dtype;
  int64_t count;  // of numbers
  int64_t row, step, taps;
};

// Batch norm before the gate, [C] each. Without batch norm, mean and var are absent; with it, weight and bias may be.
struct NormParameters {
  ParameterView weight, bias, mean, var;
  double eps;
};

// Arrays of a number for each channel that a forward kernel with batch norm has after those of the gate.
constexpr int kNormArrays = 3;

// A gate's arguments.
struct GateParameters {
  GateShape shape;
  GateNeeds needs;
  ParameterView views[kMaxParameters];
  int64_t numbers;                     // in all parameters that are a few numbers
  int64_t numbers_at[kMaxParameters];  // where those of each parameter begin; -1 for parameters that have rows
  NormParameters norm;
};

// one_pass.cuh
template <class Call>
struct OnePassArgs {
  Problem problem;
  Call call;
  OnePassPlan plan;
  GateParameters gate;
};

// two_phase.cuh. All pointers besides those in call and gate_of point to the workspace.
template <class A, class Call>
struct TwoPhaseArgs {
  Problem problem;
  Call call;
  TwoPhasePlan plan;
  GateParameters gate_of;
  unsigned long long* next_ticket;
  unsigned* arrived;         // unsigned[N]: reduced tiles; one more when the gate is written
  A* partial;                // A[N, blocks, C]
  A *gate, *shift, *memory;  // A[N, C], A[N, C] (backward, batch norm), A[min(N, grid), gate_numbers]
};

// norm.cuh, norm_channels.cu. Pointers besides those in call and gate_of, norm_mean and norm_var are to the workspace.
template <class A, class Call>
struct NormArgs {
  Problem problem;
  Call call;
  TwoPhasePlan plan;
  GateParameters gate_of;
  A *first, *second;                     // A[N, blocks, C]: of a tile, means and squares, or sums and dot products
  A *gate, *shift, *memory;              // A[N, C], A[N, C], A[grid, gate_numbers]
  A *norm_mean, *norm_var;               // forward: A[C]
  A *sum, *dot, *slope;                  // backward: A[N, C], A[N, C], A[C]
  ParameterView grad_weight, grad_bias;  // backward: [C]
};

// pack_signs.cu
struct PackArgs {
  Problem problem;
  MapView y;
  Signs signs;
};

// parameter_gradients.cu
struct GradientArgs {
  Gradient gradients[kMaxParameters];
  ParameterView to[kMaxParameters];   // all elements are written, with zeros beside the middle taps
  int64_t samples, blocks, channels;  // blocks: of a sample, each with a record
  const void* mean;                   // A[N, C]
  Records records;
};

}  // namespace eca
