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

// Which elements of y are above zero, or NaN: all that a ReLU's backward asks of y. A bit for each element of a sample,
// in the order of the layout, element e = c * S + s or s * C + c being bit e % per_byte of byte e / per_byte. data is
// null where nobody needs them.
struct Signs {
  uint8_t* data;
  int64_t sample_stride;  // bytes
};

// A sample's bytes. per_byte is 8 on a CPU; on a GPU the elements of 16 bytes of y, so that threads share no byte.
constexpr int64_t sign_bytes(int64_t elements, int64_t per_byte) { return (elements + per_byte - 1) / per_byte; }

struct ForwardCall {
  Batch x, residual, y;
  void* mean;  // A[N, C], kept for backward; null if nobody needs it
  Signs signs;
};

// What the samples leave behind for the gradients of the parameters: gates/gate.h.
struct Records {
  void *sample, *block, *field;  // A[N, sample_size], A[N, blocks of a sample, block_size], A[N, C]
  int64_t sample_size, block_size;
};

struct BackwardCall {
  Batch grad_y, x, grad_x, grad_residual;
  Signs signs;       // with kRelu
  const void* mean;  // A[N, C]
  Records records;
};

}  // namespace eca
