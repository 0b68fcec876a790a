// SPDX-License-Identifier: MIT
// L0. Efficient Channel Attention (Wang et al. 2020): z = conv1d_k(m) + bias across channels, g = squash(z).
//   dz = dg * squash'(z)    dm = conv_transposed(dz)
//   dweight[j] = sum_nc dz[c] m[c + j - half]    dbias = sum_nc dz[c]
// Parameters: weight [1, 1, k], bias [1] or absent.
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct EcaGate {
  const GateArgs<A>& args;

  static int64_t record_size(const GateArgs<A>& a) { return a.kernel_size + 1; }
  static int64_t scratch_size(const GateArgs<A>&) { return 0; }
  static Weights weights(const GateArgs<A>&) { return {0, 0}; }
  static Exchanges exchanges(const GateArgs<A>& a, bool backward) {
    const int64_t padded = a.channels + a.kernel_size - 1;
    return backward ? Exchanges{2 * padded, a.kernel_size + 1} : Exchanges{padded, 0};
  }
  static int gradients(const GateArgs<A>& a, ParameterGradient* out) {
    out[0] = {Combine::kSum, 0, a.kernel_size};
    out[1] = {Combine::kSum, a.kernel_size, 1};
    return 2;
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) const {
    const A* m = x.pad(0, mean, args.kernel_size / 2, args.circular());
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, m, c), args.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, const A* grad_gate, A* gate, A* grad_mean, A* record, A* field) const {
    const int k = args.kernel_size;
    const A* weight = args.parameters[0];
    const A* m = x.pad(0, mean, k / 2, args.circular());
    x.each([&](auto c) {
      const auto z = logit(x, m, c), g = squash(z, args.hard());
      x.store(gate, c, g);
      x.store(field, c, squash_backward(x.load(grad_gate, c), z, g, args.hard()));
    });
    const A* dz = x.pad(1, field, k / 2, args.circular());
    x.each([&](auto c) { x.store(grad_mean, c, convolve_transposed(x, weight, k, dz, c)); });
    x.keep_sums(k, record, [&](int j, auto c) { return x.load(field, c) * x.window(m, c, j); });
    x.keep_sums(1, record + k, [&](int, auto c) { return x.load(field, c); });
  }

 private:
  template <class X, class C>
  ECA_HD auto logit(X& x, const A* m, C c) const {
    const auto z = convolve(x, args.parameters[0], args.kernel_size, m, c);
    return args.parameters[1] ? z + typename X::Value(args.parameters[1][0]) : z;
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
