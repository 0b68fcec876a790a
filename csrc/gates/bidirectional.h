// SPDX-License-Identifier: MIT
// L0. Bidirectional gate: f = squash(conv(m; wf)), r = squash(conv(m; flip(wb))), h = relu(W1 m + b1),
// p = softmax(W2 h + b2), u = p0 f + p1 r, and g = squash(u), or g = u without the outer sigmoid.
//   du = dg * squash'(u)   dl = p0 p1 sum du (f - r) * (1, -1)   dh = [h > 0] W2^T dl
//   dm = conv_transposed(p0 du squash'(f)) + conv_transposed(p1 du squash'(r)) + W1^T dh
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct BidirectionalGate {
  const GateShape& shape;
  const A *m = nullptr, *ahead = nullptr, *back = nullptr;  // padded means A[C + k - 1]; dL/d(each convolution), A[C]
  A dl = 0;  // dL/d(first logit of the mixture); that of the second is -dl
  static constexpr int kForward = 0, kBackward = 1, kHiddenWeight = 2, kHiddenBias = 3, kMix = 4, kMixBias = 5;

  static constexpr const char* kName = "bidirectional_eca";
  static constexpr Parameter kParameters[] = {
      {"weight_forward", {1, 1, kTaps}, false}, {"weight_backward", {1, 1, kTaps}, false},
      {"hidden_weight", {kHidden, kC}, false},  {"hidden_bias", {kHidden}, false},
      {"mix_weight", {2, kHidden}, false},      {"mix_bias", {2}, false}};

  // A sample's record: dl [2], dW2 [2, hidden], dh [hidden]. A block's: dwf [k], dwb [k].
  static void gradients(const GateShape& s, Gradient* out) {
    const int64_t k = s.kernel_size, hidden = s.hidden;
    out[kForward] = {Combine::kBlocks, 0, k};
    out[kBackward] = {Combine::kBlocks, k, k};
    out[kHiddenWeight] = {Combine::kMean, 2 + 2 * hidden, hidden};
    out[kHiddenBias] = {Combine::kSum, 2 + 2 * hidden, hidden};
    out[kMix] = {Combine::kSum, 2, 2 * hidden};
    out[kMixBias] = {Combine::kSum, 0, 2};
  }
  static GateNeeds needs(const GateShape& s, bool backward) {
    const int64_t scratch = int64_t{s.kernel_size} + s.hidden;
    return backward ? GateNeeds{2, 3, {s.hidden, 1}, scratch + s.hidden + 1} : GateNeeds{0, 1, {s.hidden, 0}, scratch};
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) {
    A p[2];
    mix(x, mean, p);
    x.each([&](auto c) {
      const auto u = mixed(x, p, c).u;
      x.store(gate, c, outer() ? squash(u, shape.hard()) : u);
    });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, A* gate, A* grad) {
    using V = typename X::Value;
    const int k = shape.kernel_size, hidden = shape.hidden;
    A *const of_ahead = x.array(0), *const of_back = x.array(1);
    A *const dh = sums_of_hidden(x) + hidden, *const difference = dh + hidden;
    ahead = of_ahead;
    back = of_back;
    A p[2];
    mix(x, mean, p);
    x.each([&](auto c) {
      const auto at = mixed(x, p, c);
      const V g = outer() ? squash(at.u, shape.hard()) : at.u;
      const V dg = x.load(grad, c), du = outer() ? squash_backward(dg, at.u, g, shape.hard()) : dg;
      x.store(gate, c, g);
      x.store(of_ahead, c, squash_backward(V(p[0]) * du, at.z_ahead, at.ahead, shape.hard()));
      x.store(of_back, c, squash_backward(V(p[1]) * du, at.z_back, at.back, shape.hard()));
      x.store(grad, c, du * (at.ahead - at.back));
    });
    x.sums(1, difference, [&](int, auto c) { return x.load(grad, c); });
    dl = p[0] * p[1] * difference[0];

    const A* padded_ahead = x.pad(ahead, k / 2, shape.circular());
    const A* padded_back = x.pad(back, k / 2, shape.circular());
    x.each([&](auto c) {
      x.store(grad, c,
              convolve_transposed(x, x.numbers(kForward), k, padded_ahead, c) +
                  convolve_transposed(x, flipped(x), k, padded_back, c));
    });
    const A* w2 = x.numbers(kMix);
    x.times(hidden, [&](int j) { dh[j] = select(rectified(x, j) <= A(0), A(0), dl * w2[j] - dl * w2[hidden + j]); });
    x.add_rows(kHiddenWeight, hidden, [&](int j) { return dh[j]; }, grad);
  }

  template <class X>
  ECA_HD void record(X& x, const Record<A>& to) {
    const int k = shape.kernel_size, hidden = shape.hidden;
    x.keep_sums(k, to.block, [&](int j, auto c) { return x.product(x.load(ahead, c), m, c, j, k / 2); });
    x.keep_sums(k, to.block + k, [&](int j, auto c) { return x.product(x.load(back, c), m, c, k - 1 - j, k / 2); });
    x.keep(2, to.sample, [&](int i) { return i == 0 ? dl : -dl; });
    x.keep(2 * hidden, to.sample + 2,
           [&](int j) { return j < hidden ? dl * rectified(x, j) : -dl * rectified(x, j - hidden); });
    const A* dh = sums_of_hidden(x) + hidden;
    x.keep(hidden, to.sample + 2 + 2 * hidden, [&](int j) { return dh[j]; });
  }

 private:
  template <class V>
  struct Mixed {
    V z_ahead, z_back, ahead, back, u;
  };

  ECA_HD bool outer() const { return (shape.flags & kSingleSigmoid) == 0; }

  // Scratch: flip(wb) [k], W1 m [hidden]; in backward also dh [hidden] and one sum.
  template <class X>
  ECA_HD A* flipped(X& x) const {
    return x.scratch;
  }
  template <class X>
  ECA_HD A* sums_of_hidden(X& x) const {
    return x.scratch + shape.kernel_size;
  }

  template <class X>
  ECA_HD void mix(X& x, const A* mean, A (&p)[2]) {
    const int k = shape.kernel_size, hidden = shape.hidden;
    const A *w2 = x.numbers(kMix), *b2 = x.numbers(kMixBias), *wb = x.numbers(kBackward);
    x.times(k, [&](int j) { flipped(x)[j] = wb[k - 1 - j]; });
    m = x.pad_means(mean, k / 2, shape.circular());
    x.sums(hidden, sums_of_hidden(x), [&](int j, auto c) { return x.weight(kHiddenWeight, j, c) * x.load(mean, c); });
    p[0] = b2[0];
    p[1] = b2[1];
    ECA_ROLLED for (int j = 0; j < hidden; ++j) {
      const A h = rectified(x, j);
      p[0] += w2[j] * h;
      p[1] += w2[hidden + j] * h;
    }
    softmax(p);
  }

  // h[j] = relu(W1 m + b1)[j]
  template <class X>
  ECA_HD A rectified(X& x, int j) const {
    const A z = x.numbers(kHiddenBias)[j] + sums_of_hidden(x)[j];
    return select(z <= A(0), A(0), z);
  }

  template <class X, class C>
  ECA_HD auto mixed(X& x, const A (&p)[2], C c) const {
    using V = typename X::Value;
    Mixed<V> at;
    at.z_ahead = convolve(x, x.numbers(kForward), shape.kernel_size, m, c);
    at.z_back = convolve(x, flipped(x), shape.kernel_size, m, c);
    at.ahead = squash(at.z_ahead, shape.hard());
    at.back = squash(at.z_back, shape.hard());
    at.u = V(p[0]) * at.ahead + V(p[1]) * at.back;
    return at;
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
