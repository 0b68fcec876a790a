// SPDX-License-Identifier: MIT
// L0. Dynamic multi-kernel gate: p = softmax(W m + b) mixes three branches, g = squash(z), z = sum_i p_i branch_i.
//   as the original:  branch_i[c] = a_i[c] m[c], a_i the centre taps of depthwise kernels on a length-1 sequence
//   cross_channel:    branch_i[c] = conv_{3,5,7}(m)[c] across channels
//   dz = dg * squash'(z)   dp_i = sum_c dz branch_i   ds = softmax'(dp)
//   dm = sum_i p_i branch_i'(dz) + sum_i ds_i W[i]
// Parameters: three times a [C] (or weight [1, 1, k]), W [3, C], b [3].
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct MultiKernelGate {
  const GateArgs<A>& args;
  static constexpr int kAllTaps = 15, kHalf = 3;

  ECA_HD static constexpr int taps(int i) { return 3 + 2 * i; }
  ECA_HD static bool cross(const GateArgs<A>& a) { return (a.flags & kCrossChannel) != 0; }
  // record: what the three kernels need (their 15 taps, or p), then ds.
  ECA_HD static int kernels_size(const GateArgs<A>& a) { return cross(a) ? kAllTaps : 3; }
  static int64_t record_size(const GateArgs<A>& a) { return kernels_size(a) + 3; }
  static int64_t scratch_size(const GateArgs<A>&) { return 3; }
  static Weights weights(const GateArgs<A>&) { return {3, 3}; }
  static Exchanges exchanges(const GateArgs<A>& a, bool backward) {
    const int64_t padded = cross(a) ? a.channels + 2 * kHalf : 0;
    return backward ? Exchanges{2 * padded, 6 + kAllTaps} : Exchanges{padded, 3};
  }
  static int gradients(const GateArgs<A>& a, ParameterGradient* out) {
    for (int i = 0, offset = 0; i < 3; offset += cross(a) ? taps(i) : 1, ++i) {
      out[i] =
          cross(a) ? ParameterGradient{Combine::kSum, offset, taps(i)} : ParameterGradient{Combine::kField, offset, 1};
    }
    out[3] = {Combine::kMean, kernels_size(a), 3};
    out[4] = {Combine::kSum, kernels_size(a), 3};
    return 5;
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) const {
    const A* m = padded_means(x, mean);
    A p[3];
    mixture(x, mean, p);
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, mean, m, p, c), args.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, const A* grad_gate, A* gate, A* grad_mean, A* record, A* field) const {
    using V = typename X::Value;
    const bool across = cross(args);
    const A* m = padded_means(x, mean);
    A p[3], ds[3];
    mixture(x, mean, p);
    x.each([&](auto c) {
      const auto z = logit(x, mean, m, p, c), g = squash(z, args.hard());
      x.store(gate, c, g);
      x.store(field, c, squash_backward(x.load(grad_gate, c), z, g, args.hard()));  // dz
    });
    x.sums(3, x.scratch, [&](int i, auto c) { return x.load(field, c) * branch(x, i, mean, m, c); });
    for (int i = 0; i < 3; ++i) ds[i] = x.scratch[i];
    softmax_grad(p, ds);
    const A* dz = across ? x.pad(1, field, kHalf, args.circular()) : nullptr;
    const A* mix = args.parameters[3];
    x.each([&](auto c) {
      V dm = V(0);
      for (int i = 0; i < 3; ++i) {
        const V back = across ? convolve_transposed(x, args.parameters[i], taps(i), dz + kHalf - taps(i) / 2, c)
                              : x.load(args.parameters[i], c) * x.load(field, c);
        dm = dm + V(p[i]) * back + V(ds[i]) * x.weight(mix, i, c);
      }
      x.store(grad_mean, c, dm);
    });
    const int kernels = kernels_size(args);
    if (across) {
      for (int i = 0, at = 0; i < 3; at += taps(i), ++i) {
        const int first = kHalf - taps(i) / 2;
        x.keep_sums(taps(i), record + at,
                    [&](int j, auto c) { return V(p[i]) * x.load(field, c) * x.window(m, c, first + j); });
      }
    } else {
      x.keep(3, record, [&](int i) { return pick(p, i); });
      x.each([&](auto c) { x.store(field, c, x.load(field, c) * x.load(mean, c)); });  // da_i[c] = sum_n p_i dz m
    }
    x.keep(3, record + kernels, [&](int i) { return pick(ds, i); });
  }

 private:
  template <class X>
  ECA_HD const A* padded_means(X& x, const A* mean) const {
    return cross(args) ? x.pad(0, mean, kHalf, args.circular()) : nullptr;
  }

  template <class X>
  ECA_HD void mixture(X& x, const A* mean, A (&p)[3]) const {
    const A* rows = args.parameters[3];
    x.sums(3, x.scratch, [&](int i, auto c) { return x.weight(rows, i, c) * x.load(mean, c); });
    for (int i = 0; i < 3; ++i) p[i] = args.parameters[4][i] + x.scratch[i];
    softmax(p);
  }

  template <class X, class C>
  ECA_HD auto branch(X& x, int i, const A* mean, const A* m, C c) const {
    if (!cross(args)) return x.load(args.parameters[i], c) * x.load(mean, c);
    return convolve(x, args.parameters[i], taps(i), m + kHalf - taps(i) / 2, c);
  }

  template <class X, class C>
  ECA_HD auto logit(X& x, const A* mean, const A* m, const A (&p)[3], C c) const {
    using V = typename X::Value;
    return V(p[0]) * branch(x, 0, mean, m, c) + V(p[1]) * branch(x, 1, mean, m, c) + V(p[2]) * branch(x, 2, mean, m, c);
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
