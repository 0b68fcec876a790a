// SPDX-License-Identifier: MIT
// L0. Efficient Channel Attention (Wang et al. 2020): z = conv1d_k(m) + bias across channels, g = squash(z).
//   dz = dg * squash'(z)    dm = conv_transposed(dz)
//   dweight[j] = sum_nc dz[c] m[c + j - half]    dbias = sum_nc dz[c]
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct EcaGate {
  const GateShape& shape;
  const A *m = nullptr, *dz = nullptr;  // for record: the padded means, A[C + 2 half]; dL/dz, A[C]

  static constexpr const char* kName = "eca";
  static constexpr Parameter kParameters[] = {{"weight", {1, 1, kTaps}, false}, {"bias", {1}, true}};

  static void gradients(const GateShape& s, Gradient* out) {
    out[0] = {Combine::kBlocks, 0, s.kernel_size};
    out[1] = {Combine::kBlocks, s.kernel_size, 1};
  }
  static GateNeeds needs(const GateShape&, bool backward) { return {backward ? 1 : 0, backward ? 2 : 1, {}, 0}; }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) {
    m = x.pad_means(mean, shape.half(), shape.circular());
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, c), shape.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, A* gate, A* grad) {
    A* const of_logit = x.array(0);
    dz = of_logit;
    m = x.pad_means(mean, shape.half(), shape.circular());
    x.each([&](auto c) {
      const auto z = logit(x, c), g = squash(z, shape.hard());
      x.store(gate, c, g);
      x.store(of_logit, c, squash_backward(x.load(grad, c), z, g, shape.hard()));
    });
    const A* padded = x.pad(dz, shape.half(), shape.circular());
    x.each([&](auto c) { x.store(grad, c, convolve_transposed(x, x.numbers(0), shape.kernel_size, padded, c)); });
  }

  template <class X>
  ECA_HD void record(X& x, const Record<A>& to) {
    const int k = shape.kernel_size;
    x.keep_sums(k, to.block, [&](int j, auto c) { return x.product(x.load(dz, c), m, c, j, shape.half()); });
    x.keep_sums(1, to.block + k, [&](int, auto c) { return x.load(dz, c); });
  }

 private:
  template <class X, class C>
  ECA_HD auto logit(X& x, C c) const {
    const auto z = convolve(x, x.numbers(0), shape.kernel_size, m, c);
    const A* bias = x.numbers(1);
    return bias ? z + typename X::Value(bias[0]) : z;
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
