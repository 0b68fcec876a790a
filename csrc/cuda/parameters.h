// SPDX-License-Identifier: MIT
// L2. The parameters of a gate on a GPU: widened to the accumulator's type before the kernels need them, and their
// gradients combined from what the samples left behind (gates/gate.h) and narrowed again.
#pragma once
#include <cuda_runtime.h>

#include "../gates/gate.h"
#include "../problem.h"

namespace eca {

// Of a parameter with `count * step` elements, those at centre, centre + step, ... count. step is 1 but for depthwise
// kernels, of which only the centre taps act.
struct ParameterView {
  void* data;  // null: absent
  DType dtype;
  int64_t count, step, centre;
};

struct WidenArgs {
  ParameterView from[kMaxParameters];
  void* to[kMaxParameters];  // A[count]; null: nothing to do
  void* counters;            // to be zeroed
  int64_t counter_bytes;     // a multiple of 4
};

struct CombineArgs {
  ParameterGradient gradients[kMaxParameters];
  ParameterView to[kMaxParameters];  // all elements are written, those between the centre taps with zeros
  int64_t samples, channels;
  const void *record, *mean, *field;
  int64_t record_size;
};

// wide: A is double. threads: of a block.
cudaError_t launch_widen(bool wide, int threads, const WidenArgs& args, cudaStream_t stream);
cudaError_t launch_combine(bool wide, int threads, const CombineArgs& args, cudaStream_t stream);

}  // namespace eca
