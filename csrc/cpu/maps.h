// SPDX-License-Identifier: MIT
// L1. The four kernels that read and write feature maps (kernels.h says what they compute), for one dtype and layout.
#pragma once
#include "reduce.h"

namespace eca {
inline namespace ECA_TARGET {

// A number per channel, as a run needs it: the same for a whole plane, or one per element of a row.
template <class A, Layout L>
struct PerChannel {
  Pack<A> value;
  PerChannel(const void* numbers, int64_t run) : value(static_cast<const A*>(numbers)[run]) {}
  Pack<A> at(int64_t, int) const { return value; }
};
template <class A>
struct PerChannel<A, Layout::kRows> {
  const A* numbers;
  PerChannel(const void* numbers_, int64_t) : numbers(static_cast<const A*>(numbers_)) {}
  Pack<A> at(int64_t i, int n) const { return read(numbers + i, n); }
};

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
        const P product = read(at(grad_y, run) + i, n) * read(at(x, run) + i, n);
        return select(read(at(y, run) + i, n) <= P(0), P(0), product);
      });
    } else {
      reduce(tile, sums, [=](int64_t run, int64_t i, int n) {
        return read(at(grad_y, run) + i, n) * read(at(x, run) + i, n);
      });
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

  template <class Term>
  static void reduce(Tile tile, void* sums, Term term) {
    Reduce<A, L>::sums(tile, static_cast<A*>(sums), term);
  }

  template <bool Residual, bool Relu>
  static void rescale_as(const RescaleArgs& args, Tile tile) {
    each_run(tile, [&](int64_t run, int64_t begin, int64_t end) {
      const T *x = at(args.x, run), *residual = at(args.residual, run);
      const PerChannel<A, L> gate(args.gate, run);
      fill(at(args.y, run), begin, end, args.streaming, [=](int64_t i, int n) {
        P value = read(x + i, n) * gate.at(i, n);
        if constexpr (Residual) value = value + read(residual + i, n);
        if constexpr (Relu) value = select(value <= P(0), P(0), value);
        return value;
      });
    });
  }

  template <bool Relu, bool GradResidual>
  static void gradient_as(const GradientArgs& args, Tile tile) {
    each_run(tile, [&](int64_t run, int64_t begin, int64_t end) {
      const T *grad_y = at(args.grad_y, run), *y = at(args.y, run);
      T* grad_residual = at(args.grad_residual, run);
      const PerChannel<A, L> gate(args.gate, run), shift(args.shift, run);
      fill(at(args.grad_x, run), begin, end, args.streaming, [=](int64_t i, int n) {
        P grad = read(grad_y + i, n);
        if constexpr (Relu) grad = select(read(y + i, n) <= P(0), P(0), grad);
        if constexpr (GradResidual) write(grad_residual + i, grad, n);
        return grad * gate.at(i, n) + shift.at(i, n);
      });
    });
  }

  template <class Body>
  static void each_run(Tile tile, Body body) {
    if constexpr (L == Layout::kPlanes) {
      for (int64_t c = tile.c0; c < tile.c1; ++c) body(c, tile.s0, tile.s1);
    } else {
      for (int64_t s = tile.s0; s < tile.s1; ++s) body(s, tile.c0, tile.c1);
    }
  }

  template <class Value>
  static void fill(T* out, int64_t begin, int64_t end, bool streaming, Value value) {
    int64_t i = begin;
    if (streaming && reinterpret_cast<uintptr_t>(out + begin) % (kLanes * sizeof(T)) == 0) {
      for (; i + kLanes <= end; i += kLanes) store_streaming(out + i, value(i, kLanes));
    }
    for (; i + kLanes <= end; i += kLanes) store(out + i, value(i, kLanes));
    if (i < end) store_partial(out + i, value(i, static_cast<int>(end - i)), static_cast<int>(end - i));
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
