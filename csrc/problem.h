// SPDX-License-Identifier: MIT
// L0. One call of an operator as every backend sees it: sizes, options, and where the feature maps lie.
#pragma once
#include "options.h"

namespace eca {

struct Problem {
  int64_t n, c, s;
  DType dtype;
  Layout layout;
  Variant variant;
  int64_t flags;
};

// A feature map of N samples; strides in elements, run_stride between planes or rows. data is null where it is absent.
struct Batch {
  void* data;
  int64_t sample_stride, run_stride;
};

struct ForwardCall {
  Batch x, residual, y;
  void* mean;  // A[N, C], kept for backward; null if nobody needs it
};

// What the samples leave behind for the gradients of the parameters: gates/gate.h.
struct Records {
  void *sample, *block, *field;  // A[N, sample_size], A[N, blocks of a sample, block_size], A[N, C]
  int64_t sample_size, block_size;
};

struct BackwardCall {
  Batch grad_y, x, y, grad_x, grad_residual;
  const void* mean;  // A[N, C]
  Records records;
};

}  // namespace eca
