// SPDX-License-Identifier: MIT
// L0. One call of an operator, for both backends: sizes, options, and where the feature maps lie.
#pragma once
#include "options.h"

namespace eca {

struct Problem {
  int64_t n, c, s;  // samples, channels, positions
  DType dtype;
  Layout layout;
  Variant variant;
  int64_t flags;  // of Option
};

// A feature map, dtype[N, C, S]; absent if data is null. Strides in elements, run_stride between planes or rows.
struct MapView {
  void* data;
  int64_t sample_stride, run_stride;
};

// The signs of y: a bit for each element, set if it is above zero or NaN, which is all that a ReLU's backward needs of
// y. Elements are in the order of the layout: number e = c * S + s or s * C + c is bit e % per_byte of byte e /
// per_byte.
struct Signs {
  uint8_t* data;          // uint8[N, sign_bytes]; null where they are not needed
  int64_t sample_stride;  // bytes
};

// Bytes of a sample. per_byte: 8 on a CPU; on a GPU as many elements as a vector of 16 bytes has, one thread's.
constexpr int64_t sign_bytes(int64_t elements, int64_t per_byte) { return (elements + per_byte - 1) / per_byte; }

struct ForwardCall {
  MapView x, residual, y;
  void* mean;  // A[N, C], of x, for backward; null where it is not needed
  Signs signs;
};

// What each sample records for the gradients of the parameters: gates/gate.h.
struct Records {
  void *sample, *block, *channel;  // A[N, sample_size], A[N, blocks per sample, block_size], A[N, C]
  int64_t sample_size, block_size;
};

struct BackwardCall {
  MapView grad_y, x, grad_x, grad_residual;
  Signs signs;       // with kRelu
  const void* mean;  // A[N, C]
  Records records;
};

}  // namespace eca
