// SPDX-License-Identifier: MIT
// L1. What one instruction set offers: a table of functions on raw pointers. kernels_<set>.cpp fills one table each,
// kernels.cpp picks the best that this machine runs.
//
// The four kernels that touch feature maps work on a tile of one sample, channels [c0, c1) x positions [s0, s1).
// "A" is the accumulator: float, or double for float64.
#pragma once
#include "../gates/gate.h"
#include "../tiling.h"

namespace eca {
inline namespace ECA_TARGET {

// What the kernels are given of a gate.
template <class A>
struct GateArgs {
  GateShape shape;
  const A* parameters[kMaxParameters];  // in the order of the operator's arguments; null where optional and absent
};

// Numbers of A that a gate needs: a padded copy has room for a window of 16 lanes that starts at the last channel.
inline int64_t padded_size(const GateShape& shape) { return shape.channels + 2 * shape.half() + 16; }
inline int64_t gate_workspace(const GateShape& shape, const GateNeeds& needs) {
  return needs.pads * padded_size(shape) + needs.arrays * shape.channels + needs.scratch;
}

}  // namespace ECA_TARGET

// One sample of a feature map: its first element, and the distance between planes (kPlanes) or rows (kRows).
struct Map {
  void* data;
  int64_t stride;
};

// streaming: outputs go past the caches, because they are too large to stay in them.
struct RescaleArgs {
  Map x, residual, y;  // residual.data may be null
  const void* gate;    // A[C]
  bool relu, streaming;
};

struct GradientArgs {
  Map grad_y, y, grad_x, grad_residual;  // y.data is null without relu; grad_residual.data is null if not asked for
  const void *gate, *shift;              // A[C] each
  bool streaming;
};

struct MapKernels {
  // sums[c] = sum of x over the tile's positions
  void (*pool)(Map x, Tile tile, void* sums);
  // sums[c] = sum of grad_y * x, over positions where y > 0 if y is given
  void (*dot)(Map grad_y, Map x, Map y, Tile tile, void* sums);
  // y = relu(x * gate[c] + residual)
  void (*rescale)(const RescaleArgs& args, Tile tile);
  // grad_residual = [y > 0] grad_y, grad_x = grad_residual * gate[c] + shift[c]
  void (*gradient)(const GradientArgs& args, Tile tile);
};

// Pointers as in gates/gate.h; args is GateArgs<A>, memory holds gate_workspace numbers.
struct GateKernels {
  void (*forward)(const void* args, void* memory, const void* mean, void* gate);
  void (*backward)(const void* args, void* memory, const void* mean, void* gate, void* grad, void* sample_record,
                   void* block_record, void* field);
  // out[i] = sum_n weights[n * stride] * values[n * columns + i], i in [begin, end), n ascending
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
