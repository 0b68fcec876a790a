// SPDX-License-Identifier: MIT
// L1. Fills the table of kernels.h for the instruction set that the including file was compiled for.
#pragma once
#include "channels.h"
#include "maps.h"

namespace eca {
inline namespace ECA_TARGET {

template <template <class> class Gate, class A>
struct GateEntry {
  static void forward(const void* args_, void* memory, const void* mean, void* gate) {
    const auto& args = *static_cast<const GateArgs<A>*>(args_);
    Channels<A> x(args, Gate<A>::needs(args.shape, false), static_cast<A*>(memory));
    Gate<A>{args.shape}.forward(x, static_cast<const A*>(mean), static_cast<A*>(gate));
  }
  static void backward(const void* args_, void* memory, const void* mean, void* gate, void* grad, void* sample_record,
                       void* block_record, void* channel_record) {
    const auto& args = *static_cast<const GateArgs<A>*>(args_);
    Channels<A> x(args, Gate<A>::needs(args.shape, true), static_cast<A*>(memory));
    Gate<A> of{args.shape};
    of.backward(x, static_cast<const A*>(mean), static_cast<A*>(gate), static_cast<A*>(grad));
    of.record(x, {static_cast<A*>(sample_record), static_cast<A*>(block_record), static_cast<A*>(channel_record)});
  }
};

template <class A>
struct CombineEntry {
  static void combine(const void* weights_, int64_t stride, const void* values_, int64_t columns, int64_t samples,
                      int64_t begin, int64_t end, void* out) {
    const A *weights = static_cast<const A*>(weights_), *values = static_cast<const A*>(values_);
    for (int64_t i = begin; i < end; i += kLanes) {
      const int lanes = static_cast<int>(end - i < kLanes ? end - i : kLanes);
      Pack<A> total = Pack<A>(0);
      for (int64_t n = 0; n < samples; ++n) {
        const Pack<A> value = read(values + n * columns + i, lanes);
        total = total + (weights ? Pack<A>(weights[n * stride]) * value : value);
      }
      write(static_cast<A*>(out) + i, total, lanes);
    }
  }
};

template <class T, Layout L>
constexpr MapKernels map_kernels() {
  return {&Maps<T, L>::pool, &Maps<T, L>::moments, &Maps<T, L>::dot,
          &Maps<T, L>::dots, &Maps<T, L>::rescale, &Maps<T, L>::gradient};
}

template <template <class> class Gate, class A>
constexpr GateKernels gate_kernels() {
  return {&GateEntry<Gate, A>::forward, &GateEntry<Gate, A>::backward, &CombineEntry<A>::combine};
}

template <template <class> class... All>
constexpr Kernels table(const char* name, GateList<All...>) {
  return {name,
          {{map_kernels<float, Layout::kPlanes>(), map_kernels<float, Layout::kRows>()},
           {map_kernels<double, Layout::kPlanes>(), map_kernels<double, Layout::kRows>()},
           {map_kernels<Half, Layout::kPlanes>(), map_kernels<Half, Layout::kRows>()},
           {map_kernels<BFloat16, Layout::kPlanes>(), map_kernels<BFloat16, Layout::kRows>()}},
          {{gate_kernels<All, float>(), gate_kernels<All, double>()}...}};
}

// In the order of DType and Layout (options.h) and of the list of gates.
constexpr Kernels table(const char* name) { return table(name, Gates{}); }

}  // namespace ECA_TARGET
}  // namespace eca
