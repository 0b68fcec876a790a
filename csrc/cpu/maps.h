// SPDX-License-Identifier: MIT
// L1. The four kernels that read and write feature maps (kernels.h says what they compute), for one dtype and layout.
#pragma once
#include "reduce.h"
#include "walk.h"

namespace eca {
inline namespace ECA_TARGET {

template <class T, Layout L>
struct Maps {
  using A = Accumulator<T>;
  using P = Pack<A>;

  static void pool(Map x, Tile tile, void* sums) {
    reduce(tile, sums, [=](int64_t run, int64_t i, int n) { return read(at(x, run) + i, n); });
  }

  static void dot(Map grad_y, Map x, Map y, Tile tile, void* sums) {
    if (y.data) {
      reduce(tile, sums, [=](int64_t run, int64_t i, int n) {
        const P grad = select(read(at(y, run) + i, n) <= P(0), P(0), read(at(grad_y, run) + i, n));
        return grad * read(at(x, run) + i, n);
      });
    } else {
      reduce(tile, sums,
             [=](int64_t run, int64_t i, int n) { return read(at(grad_y, run) + i, n) * read(at(x, run) + i, n); });
    }
  }

  static void rescale(const RescaleArgs& args, Tile tile) {
    if (args.residual.data) {
      args.relu ? rescale_as<true, true>(args, tile) : rescale_as<true, false>(args, tile);
    } else {
      args.relu ? rescale_as<false, true>(args, tile) : rescale_as<false, false>(args, tile);
    }
  }

  static void gradient(const GradientArgs& args, Tile tile) {
    if (!args.y.data) {
      gradient_as<false, false>(args, tile);
    } else {
      args.grad_residual.data ? gradient_as<true, true>(args, tile) : gradient_as<true, false>(args, tile);
    }
  }

 private:
  static T* at(Map map, int64_t run) { return static_cast<T*>(map.data) + run * map.stride; }

  static void put(T* p, P value, int n, bool streaming) {
    const bool whole = n == kLanes && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T)) == 0;
    if (streaming && whole) {
      store_streaming(p, value);
    } else {
      write(p, value, n);
    }
  }

  template <class Term>
  static void reduce(Tile tile, void* sums, Term term) {
    Reduce<A, L>::sums(tile, static_cast<A*>(sums), term);
  }

  template <bool Residual, bool Relu>
  static void rescale_as(const RescaleArgs& args, Tile tile) {
    const Map maps[] = {args.y, args.x, args.residual};
    const bool streaming = args.streaming;
    Walk<T, L>::each(tile, maps, args.gate, nullptr, [=](T* const* p, int64_t i, int n, P gate, P) {
      P value = read(p[1] + i, n) * gate;
      if constexpr (Residual) value = value + read(p[2] + i, n);
      if constexpr (Relu) value = select(value <= P(0), P(0), value);
      put(p[0] + i, value, n, streaming);
    });
    if (streaming) end_streaming();
  }

  template <bool Relu, bool GradResidual>
  static void gradient_as(const GradientArgs& args, Tile tile) {
    const Map maps[] = {args.grad_x, args.grad_y, args.y, args.grad_residual};
    const bool streaming = args.streaming;
    Walk<T, L>::each(tile, maps, args.gate, args.shift, [=](T* const* p, int64_t i, int n, P gate, P shift) {
      P grad = read(p[1] + i, n);
      if constexpr (Relu) grad = select(read(p[2] + i, n) <= P(0), P(0), grad);
      if constexpr (GradResidual) put(p[3] + i, grad, n, streaming);
      put(p[0] + i, grad * gate + shift, n, streaming);
    });
    if (streaming) end_streaming();
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
