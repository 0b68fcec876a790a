// SPDX-License-Identifier: MIT
// L0. Squeeze-and-Excitation (Hu, Shen and Sun, CVPR 2018): h = relu(W1 m + b1), z = W2 h + b2, g = squash(z).
//   dz = dg * squash'(z)   dh = [h > 0] W2^T dz   dm = W1^T dh
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct SqueezeExcitationGate {
  const GateShape& shape;
  const A* dz = nullptr;  // for record: dL/dz
  static constexpr int kReduce = 0, kReduceBias = 1, kExpand = 2, kExpandBias = 3;

  static constexpr const char* kName = "squeeze_excitation";
  static constexpr Parameter kParameters[] = {{"reduce_weight", {kHidden, kC, 1, 1}, false},
                                              {"reduce_bias", {kHidden}, false},
                                              {"expand_weight", {kC, kHidden, 1, 1}, false},
                                              {"expand_bias", {kC}, false}};

  // A sample's record: dh [hidden], h [hidden], 1. A channel's: dz.
  static void gradients(const GateShape& s, Gradient* out) {
    const int64_t hidden = s.hidden;
    out[kReduce] = {Combine::kMean, 0, hidden};
    out[kReduceBias] = {Combine::kSum, 0, hidden};
    out[kExpand] = {Combine::kChannel, hidden, hidden};
    out[kExpandBias] = {Combine::kChannel, 2 * hidden, 1};
  }
  static GateNeeds needs(const GateShape& s, bool backward) {
    return backward ? GateNeeds{1, 0, {s.hidden, s.hidden}, 2 * int64_t{s.hidden}}
                    : GateNeeds{0, 0, {s.hidden, 0}, s.hidden};
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) {
    squeeze(x, mean);
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, c), shape.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, A* gate, A* grad) {
    A *const of_logit = x.array(0), *const dh = of_hidden(x);
    dz = of_logit;
    squeeze(x, mean);
    x.each([&](auto c) {
      const auto z = logit(x, c), g = squash(z, shape.hard());
      x.store(gate, c, g);
      x.store(of_logit, c, squash_backward(x.load(grad, c), z, g, shape.hard()));
      x.store(grad, c, typename X::Value(0));
    });
    x.sums(shape.hidden, dh, [&](int j, auto c) { return x.weight(kExpand, j, c) * x.load(dz, c); });
    x.times(shape.hidden, [&](int j) { dh[j] = select(hidden(x, j) <= A(0), A(0), dh[j]); });
    x.add_rows(kReduce, shape.hidden, [&](int j) { return dh[j]; }, grad);
  }

  template <class X>
  ECA_HD void record(X& x, const Record<A>& to) {
    const A* const dh = of_hidden(x);
    x.keep(shape.hidden, to.sample, [&](int j) { return dh[j]; });
    x.keep(shape.hidden, to.sample + shape.hidden, [&](int j) { return hidden(x, j); });
    x.keep(1, to.sample + 2 * shape.hidden, [&](int) { return A(1); });
    x.keep_each(to.channel, [&](auto c) { return x.load(dz, c); });
  }

 private:
  // Scratch: W1 m [hidden]; in backward also dh [hidden].
  template <class X>
  ECA_HD A* of_hidden(X& x) const {
    return x.scratch + shape.hidden;
  }
  template <class X>
  ECA_HD void squeeze(X& x, const A* mean) {
    x.sums(shape.hidden, x.scratch, [&](int j, auto c) { return x.weight(kReduce, j, c) * x.load(mean, c); });
  }
  template <class X>
  ECA_HD A hidden(X& x, int j) const {
    const A z = x.numbers(kReduceBias)[j] + x.scratch[j];
    return select(z <= A(0), A(0), z);
  }
  template <class X, class C>
  ECA_HD auto logit(X& x, C c) const {
    using V = typename X::Value;
    V z = x.weight(kExpandBias, 0, c);
    ECA_ROLLED for (int j = 0; j < shape.hidden; ++j) z = z + V(hidden(x, j)) * x.weight(kExpand, j, c);
    return z;
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
