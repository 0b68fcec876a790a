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

// Numbers of A that the executor of the gates needs besides the gate's own scratch: two padded copies of C numbers,
// with room for a window of 16 lanes that starts at the last channel.
inline int64_t padded_size(int64_t channels, int64_t half) { return channels + 2 * half + 16; }
inline int64_t gate_workspace(int64_t channels, int64_t half) { return 2 * padded_size(channels, half); }

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

// Pointers as in gates/gate.h; args is GateArgs<A>, scratch holds gate_workspace numbers and the gate's own scratch.
struct GateKernels {
  void (*forward)(const void* args, void* scratch, const void* mean, void* gate);
  void (*backward)(const void* args, void* scratch, const void* mean, const void* grad_gate, void* gate,
                   void* grad_mean, void* record, void* field);
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
