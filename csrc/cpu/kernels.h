// SPDX-License-Identifier: MIT
// L1. What one instruction set offers: a table of functions on raw pointers. kernels_<set>.cpp fills one table each,
// kernels.cpp picks the best that this machine runs.
//
// The kernels that touch feature maps work on a tile of one sample, channels [c0, c1) x positions [s0, s1).
// T is the dtype of the maps, A the accumulator: float, or double for float64.
#pragma once
#include "../gates/registry.h"
#include "../tiling.h"

namespace eca {
inline namespace ECA_TARGET {

// A gate's arguments.
template <class A>
struct GateArgs {
  GateShape shape;
  const A* parameters[kMaxParameters];  // A[numbers] or A[rows, C], in the operator's order; null where absent
};

// Numbers of A that a gate needs: a padded copy has room for a window of 16 lanes that starts at the last channel.
inline int64_t padded_size(const GateShape& shape) { return shape.channels + 2 * shape.half() + 16; }
inline int64_t gate_workspace(const GateShape& shape, const GateNeeds& needs) {
  return needs.pads * padded_size(shape) + needs.arrays * shape.channels + needs.scratch;
}

}  // namespace ECA_TARGET

// One sample of a feature map, T[C, S]: its first element, and the distance between planes (kPlanes) or rows (kRows).
struct SampleView {
  void* data;
  int64_t stride;
};

// The signs of y of one sample, uint8[sign_bytes] (problem.h), or null; and the number of elements of a plane or row.
struct SampleSigns {
  uint8_t* data;
  int64_t length;
};

// streaming: outputs bypass the caches, because they are too large to stay in them.
struct RescaleArgs {
  SampleView x, residual, y;  // residual.data may be null
  SampleSigns signs;          // to be written
  const void *gate, *shift;   // A[C] each; shift may be null
  bool relu, streaming;
};

struct DotArgs {
  SampleView grad_y, x;
  SampleSigns signs;
  const void* centre;  // A[C]
};

struct GradientArgs {
  SampleView grad_y, x, grad_x, grad_residual;  // x.data is null without slope; grad_residual.data if not asked for
  SampleSigns signs;
  const void *gate, *shift, *slope;  // A[C] each; slope may be null
  bool streaming;
};

// Sums, means, squares and products are A[C], of which [c0, c1) are written. grad is grad_y where the sign of y is set,
// or all of grad_y without signs.
struct MapKernels {
  // sums[c] = sum of x over the tile's positions
  void (*pool)(SampleView x, Tile tile, void* sums);
  // means[c] = mean of x over the tile's positions, squares[c] = sum of (x - means[c])^2
  void (*moments)(SampleView x, Tile tile, void* means, void* squares);
  // products[c] = sum of grad * x
  void (*dot)(const DotArgs& args, Tile tile, void* products);
  // sums[c] = sum of grad, products[c] = sum of grad * (x - centre[c])
  void (*dots)(const DotArgs& args, Tile tile, void* sums, void* products);
  // y = relu(x * gate[c] + shift[c] + residual)
  void (*rescale)(const RescaleArgs& args, Tile tile);
  // grad_residual = grad, grad_x = grad * gate[c] + x * slope[c] + shift[c]
  void (*gradient)(const GradientArgs& args, Tile tile);
};

// args is GateArgs<A>; memory is A[gate_workspace]; mean, gate, grad and channel_record are A[C]; sample_record and
// block_record are A[] of the sizes in GateFacts.
struct GateKernels {
  void (*forward)(const void* args, void* memory, const void* mean, void* gate);
  void (*backward)(const void* args, void* memory, const void* mean, void* gate, void* grad, void* sample_record,
                   void* block_record, void* channel_record);
  // out[i] = sum_n weights[n * stride] * values[n * columns + i], i in [begin, end), n ascending; null weights are 1
  void (*combine)(const void* weights, int64_t stride, const void* values, int64_t columns, int64_t samples,
                  int64_t begin, int64_t end, void* out);
};

struct Kernels {
  const char* name;
  MapKernels maps[kDTypes][kLayouts];
  GateKernels gates[kVariants][2];  // [..][0]: float, [..][1]: double
};

// The best table for this machine, or the one that the environment variable ECA_CUDA_CPU names
// ("avx512", "avx2", "baseline"; std::invalid_argument for a name that is unknown or that this machine can't run).
const Kernels& kernels();

}  // namespace eca
