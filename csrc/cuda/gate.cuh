// SPDX-License-Identifier: MIT
// L1. The gate of one sample, computed by one block between the two phases. Not inlined: it runs once per sample, and
// its registers are not to be counted against the loops over feature maps.
#pragma once
#include "../gates/registry.h"
#include "../problem.h"
#include "channels.cuh"

namespace eca {

// partial[c] = sum over the blocks of partial[block * channels + c], in their order.
template <class A>
__device__ void add_partials(A* partial, int64_t channels, int64_t blocks) {
  for (int64_t c = threadIdx.x; c < channels; c += blockDim.x) {
    A total = partial[c];
    for (int64_t b = 1; b < blocks; ++b) total += partial[b * channels + c];
    partial[c] = total;
  }
}

template <class A, class X>
__device__ __forceinline__ void gate_forward(Variant variant, const GateArgs<A>& args, X& x, const A* mean, A* gate) {
  with_gate(variant, args, [&](auto of) { of.forward(x, mean, gate); });
}

template <class A, class X>
__device__ __forceinline__ void gate_backward(Variant variant, const GateArgs<A>& args, X& x, const A* mean,
                                              const A* grad_gate, A* gate, A* grad_mean, A* record, A* field) {
  with_gate(variant, args, [&](auto of) { of.backward(x, mean, grad_gate, gate, grad_mean, record, field); });
}

}  // namespace eca
