// SPDX-License-Identifier: MIT
// L0. Bidirectional gate: f = squash(conv(m; wf)), r = squash(conv(m; flip(wb))), h = relu(W1 m + b1),
// p = softmax(W2 h + b2), u = p0 f + p1 r, and g = squash(u), or g = u without the outer sigmoid.
//   du = dg * squash'(u)   dl = p0 p1 sum du (f - r) * (1, -1)   dh = [h > 0] W2^T dl
//   dm = conv_transposed(p0 du squash'(f)) + conv_transposed(p1 du squash'(r)) + W1^T dh
// Parameters: wf [1, 1, k], wb [1, 1, k], W1 [hidden, C], b1 [hidden], W2 [2, hidden], b2 [2].
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct BidirectionalGate {
  const GateArgs<A>& args;

  // record: dwf [k], dwb [k], dl [2], dW2 [2, hidden], dh [hidden]
  static int64_t record_size(const GateArgs<A>& a) { return 2 * a.kernel_size + 2 + 3 * a.hidden; }
  static int64_t scratch_size(const GateArgs<A>& a) { return 2 * a.channels + 2 * a.kernel_size + 2 * a.hidden; }
  static Weights weights(const GateArgs<A>& a) { return {2, a.hidden}; }
  static Exchanges exchanges(const GateArgs<A>& a, bool backward) {
    const int64_t padded = a.channels + a.kernel_size - 1;
    return backward ? Exchanges{3 * padded, a.hidden + 1 + 2 * a.kernel_size} : Exchanges{padded, a.hidden};
  }
  static int gradients(const GateArgs<A>& a, ParameterGradient* out) {
    const int k = a.kernel_size, hidden = a.hidden;
    out[0] = {Combine::kSum, 0, k};
    out[1] = {Combine::kSum, k, k};
    out[2] = {Combine::kMean, 2 * k + 2 + 2 * hidden, hidden};
    out[3] = {Combine::kSum, 2 * k + 2 + 2 * hidden, hidden};
    out[4] = {Combine::kSum, 2 * k + 2, 2 * hidden};
    out[5] = {Combine::kSum, 2 * k, 2};
    return 6;
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) const {
    const Scratch s = scratch(x);
    const A* m = x.pad(0, mean, args.kernel_size / 2, args.circular());
    A p[2];
    mixture(x, mean, s, p);
    x.each([&](auto c) {
      const auto u = mixed(x, m, s, p, c).u;
      x.store(gate, c, outer() ? squash(u, args.hard()) : u);
    });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, const A* grad_gate, A* gate, A* grad_mean, A* record, A* field) const {
    using V = typename X::Value;
    const int k = args.kernel_size, hidden = args.hidden;
    const Scratch s = scratch(x);
    const A* m = x.pad(0, mean, k / 2, args.circular());
    A p[2], dl[2];
    mixture(x, mean, s, p);
    x.each([&](auto c) {
      const auto at = mixed(x, m, s, p, c);
      const V g = outer() ? squash(at.u, args.hard()) : at.u;
      const V du = outer() ? squash_backward(x.load(grad_gate, c), at.u, g, args.hard()) : x.load(grad_gate, c);
      x.store(gate, c, g);
      x.store(field, c, du);
      x.store(s.ahead, c, squash_backward(V(p[0]) * du, at.z_ahead, at.ahead, args.hard()));
      x.store(s.back, c, squash_backward(V(p[1]) * du, at.z_back, at.back, args.hard()));
      x.store(grad_mean, c, du * (at.ahead - at.back));
    });
    const A difference = x.sum([&](auto c) { return x.load(grad_mean, c); });
    dl[0] = p[0] * p[1] * difference;
    dl[1] = -dl[0];

    const A* ahead = x.pad(1, s.ahead, k / 2, args.circular());
    x.each([&](auto c) { x.store(grad_mean, c, convolve_transposed(x, args.parameters[0], k, ahead, c)); });
    const A* back = x.pad(1, s.back, k / 2, args.circular());
    x.each(
        [&](auto c) { x.store(grad_mean, c, x.load(grad_mean, c) + convolve_transposed(x, s.flipped, k, back, c)); });
    x.keep_sums(k, record, [&](int j, auto c) { return x.load(s.ahead, c) * x.window(m, c, j); });
    x.keep_sums(k, record + k, [&](int j, auto c) { return x.load(s.back, c) * x.window(m, c, k - 1 - j); });

    A* dh = s.grad_hidden;
    const A* w2 = args.parameters[4];
    x.times(hidden,
            [&](int j) { dh[j] = select(rectified(s, j) <= A(0), A(0), dl[0] * w2[j] + dl[1] * w2[hidden + j]); });
    x.keep(2, record + 2 * k, [&](int i) { return pick(dl, i); });
    A* of_layers = record + 2 * k + 2;
    for (int i = 0; i < 2; ++i) {
      x.keep(hidden, of_layers + i * hidden, [&](int j) { return dl[i] * rectified(s, j); });
    }
    x.keep(hidden, of_layers + 2 * hidden, [&](int j) { return dh[j]; });
    const A* w1 = args.parameters[2];
    ECA_ROLLED for (int j = 0; j < hidden; j += 4) {  // four rows of W1 per visit of grad_mean
      const int rows = hidden - j < 4 ? hidden - j : 4;
      x.each([&](auto c) {
        V dm = x.load(grad_mean, c);
        for (int r = j; r < j + rows; ++r) dm = dm + V(dh[r]) * x.weight(w1, r, c);
        x.store(grad_mean, c, dm);
      });
    }
  }

 private:
  struct Scratch {
    A *ahead, *back, *flipped, *hidden, *grad_hidden;
  };
  template <class V>
  struct Mixed {
    V z_ahead, z_back, ahead, back, u;
  };

  ECA_HD bool outer() const { return (args.flags & kSingleSigmoid) == 0; }

  template <class X>
  ECA_HD Scratch scratch(X& x) const {
    const int64_t c = args.channels;
    const int k = args.kernel_size;
    A* p = x.scratch;
    const Scratch s{p, p + c, p + 2 * c, p + 2 * c + k, p + 2 * c + k + args.hidden};
    x.times(k, [&](int j) { s.flipped[j] = args.parameters[1][k - 1 - j]; });
    return s;
  }

  template <class X>
  ECA_HD void mixture(X& x, const A* mean, const Scratch& s, A (&p)[2]) const {
    const A *w1 = args.parameters[2], *w2 = args.parameters[4], *b2 = args.parameters[5];
    x.sums(args.hidden, s.hidden, [&](int j, auto c) { return x.weight(w1, j, c) * x.load(mean, c); });
    p[0] = b2[0];
    p[1] = b2[1];
    ECA_ROLLED for (int j = 0; j < args.hidden; ++j) {
      const A h = rectified(s, j);
      p[0] += w2[j] * h;
      p[1] += w2[args.hidden + j] * h;
    }
    softmax(p);
  }

  // h[j] = relu(W1 m + b1)[j]; s.hidden holds W1 m.
  ECA_HD A rectified(const Scratch& s, int j) const {
    const A z = args.parameters[3][j] + s.hidden[j];
    return select(z <= A(0), A(0), z);
  }

  template <class X, class C>
  ECA_HD auto mixed(X& x, const A* m, const Scratch& s, const A (&p)[2], C c) const {
    using V = typename X::Value;
    Mixed<V> at;
    at.z_ahead = convolve(x, args.parameters[0], args.kernel_size, m, c);
    at.z_back = convolve(x, s.flipped, args.kernel_size, m, c);
    at.ahead = squash(at.z_ahead, args.hard());
    at.back = squash(at.z_back, args.hard());
    at.u = V(p[0]) * at.ahead + V(p[1]) * at.back;
    return at;
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
