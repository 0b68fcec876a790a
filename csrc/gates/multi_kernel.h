// SPDX-License-Identifier: MIT
// L0. Dynamic multi-kernel gate: p = softmax(W m + b) mixes three branches, g = squash(z), z = sum_i p_i branch_i.
//   as the original:  branch_i[c] = a_i[c] m[c], a_i the centre taps of depthwise kernels on a length-1 sequence
//   cross_channel:    branch_i[c] = conv_{3,5,7}(m)[c] across channels
//   dz = dg * squash'(z)   dp_i = sum_c dz branch_i   ds = softmax'(dp)
//   dm = sum_i p_i branch_i'(dz) + sum_i ds_i W[i]
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct MultiKernelGate {
  const GateShape& shape;
  const A *m = nullptr, *dz = nullptr;  // means A[C], or A[C + 2 kHalf], padded, if cross_channel; dL/dz, A[C]
  A p[3] = {}, ds[3] = {};              // the mixture's weights, and dL/d(its logits)
  static constexpr int kHalf = 3, kMix = 3, kMixBias = 4;

  static constexpr const char* kName = "multi_kernel_eca";
  static constexpr Parameter kParameters[] = {{"weight3", {kBranches, 1, 3}, false},
                                              {"weight5", {kBranches, 1, 5}, false},
                                              {"weight7", {kBranches, 1, 7}, false},
                                              {"mix_weight", {3, kC}, false},
                                              {"mix_bias", {3}, false}};

  ECA_HD static constexpr int taps(int i) { return 3 + 2 * i; }
  ECA_HD static bool cross(const GateShape& s) { return (s.flags & kCrossChannel) != 0; }

  // A sample's record: p [3], ds [3]. A block's: the 15 taps, if branches cross channels.
  static void gradients(const GateShape& s, Gradient* out) {
    for (int i = 0, offset = 0; i < 3; offset += taps(i), ++i)
      out[i] = cross(s) ? Gradient{Combine::kBlocks, offset, taps(i)} : Gradient{Combine::kChannel, i, 1};
    out[kMix] = {Combine::kMean, 3, 3};
    out[kMixBias] = {Combine::kSum, 3, 3};
  }
  static GateNeeds needs(const GateShape& s, bool backward) {
    const int pads = cross(s) ? 1 : 0;
    return backward ? GateNeeds{1, 2 * pads, {3, 3}, 6} : GateNeeds{0, pads, {3, 0}, 3};
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) {
    mix(x, mean);
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, c), shape.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, A* gate, A* grad) {
    using V = typename X::Value;
    const bool across = cross(shape);
    A* const of_logit = x.array(0);
    dz = of_logit;
    mix(x, mean);
    x.each([&](auto c) {
      const auto z = logit(x, c), g = squash(z, shape.hard());
      x.store(gate, c, g);
      x.store(of_logit, c, squash_backward(x.load(grad, c), z, g, shape.hard()));
    });
    A* const dp = x.scratch + 3;
    x.sums(3, dp, [&](int i, auto c) { return x.load(dz, c) * branch(x, i, c); });
    for (int i = 0; i < 3; ++i) ds[i] = dp[i];
    softmax_grad(p, ds);
    const A* padded = across ? x.pad(dz, kHalf, shape.circular()) : nullptr;
    x.each([&](auto c) {
      V dm = V(0);
      for (int i = 0; i < 3; ++i) {
        const V back = across ? convolve_transposed(x, x.numbers(i), taps(i), padded + kHalf - taps(i) / 2, c)
                              : x.weight(i, 0, c) * x.load(dz, c);
        dm = dm + V(p[i]) * back + V(ds[i]) * x.weight(kMix, i, c);
      }
      x.store(grad, c, dm);
    });
  }

  template <class X>
  ECA_HD void record(X& x, const Record<A>& to) {
    if (cross(shape)) {
      for (int i = 0, at = 0; i < 3; at += taps(i), ++i) {
        const int half = taps(i) / 2;
        const A* const padded = m + kHalf - half;
        x.keep_sums(taps(i), to.block + at, [&](int j, auto c) {
          return x.product(typename X::Value(p[i]) * x.load(dz, c), padded, c, j, half);
        });
      }
    } else {
      x.keep_each(to.channel, [&](auto c) { return x.load(dz, c) * x.load(m, c); });  // da_i[c] = sum_n p_i dz m
    }
    x.keep(3, to.sample, [&](int i) { return pick(p, i); });
    x.keep(3, to.sample + 3, [&](int i) { return pick(ds, i); });
  }

 private:
  template <class X>
  ECA_HD void mix(X& x, const A* mean) {
    m = cross(shape) ? x.pad_means(mean, kHalf, shape.circular()) : mean;
    x.sums(3, x.scratch, [&](int i, auto c) { return x.weight(kMix, i, c) * x.load(mean, c); });
    for (int i = 0; i < 3; ++i) p[i] = x.numbers(kMixBias)[i] + x.scratch[i];
    softmax(p);
  }

  template <class X, class C>
  ECA_HD auto branch(X& x, int i, C c) const {
    if (!cross(shape)) return x.weight(i, 0, c) * x.load(m, c);
    return convolve(x, x.numbers(i), taps(i), m + kHalf - taps(i) / 2, c);
  }

  template <class X, class C>
  ECA_HD auto logit(X& x, C c) const {
    using V = typename X::Value;
    return V(p[0]) * branch(x, 0, c) + V(p[1]) * branch(x, 1, c) + V(p[2]) * branch(x, 2, c);
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
