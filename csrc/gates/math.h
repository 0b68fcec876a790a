// SPDX-License-Identifier: MIT
// L0. The scalar maths of the gates, written once for CPU, CUDA and emulator. V is float, double or a SIMD pack of
// them; a pack has operators, exp and select of its own.
//
// ECA_TARGET names the instruction set a file is compiled for. It is part of every symbol, so that the linker can
// never replace a function compiled for an old processor by the same function compiled for a new one.
#pragma once
#include <cmath>
#include <cstdint>

#include "../options.h"

#ifndef ECA_TARGET
#define ECA_TARGET portable
#endif

namespace eca {
inline namespace ECA_TARGET {

ECA_HD float select(bool condition, float a, float b) { return condition ? a : b; }
ECA_HD double select(bool condition, double a, double b) { return condition ? a : b; }

// The gate function: sigmoid 1 / (1 + e^-z), or hard_sigmoid min(max(z + 3, 0), 6) / 6. NaN stays NaN in both.
template <class V>
ECA_HD V squash(V z, bool hard) {
  using std::exp;
  if (!hard) return V(1) / (V(1) + exp(-z));
  const V t = z + V(3), low = select(t < V(0), V(0), t);
  return select(low > V(6), V(6), low) / V(6);
}

// dL/dz, given dL/dg, z and g = squash(z). Where hard_sigmoid is flat, the gradient is zero whatever dL/dg is.
template <class V>
ECA_HD V squash_backward(V grad, V z, V g, bool hard) {
  if (!hard) return grad * g * (V(1) - g);
  return select(V(-3) <= z, select(z <= V(3), grad / V(6), V(0)), V(0));
}

// numbers[i], for an i that is known only at run time: by comparisons, so that a GPU keeps them in registers.
template <int K, class A>
ECA_HD A pick(const A (&numbers)[K], int i) {
  A number = numbers[0];
  for (int k = 1; k < K; ++k) number = select(i == k, numbers[k], number);
  return number;
}

// p = softmax(logit) of K numbers, in place.
template <int K, class A>
ECA_HD void softmax(A (&logit)[K]) {
  using std::exp;
  A top = logit[0], total = A(0);
  for (int i = 1; i < K; ++i) top = logit[i] > top || logit[i] != logit[i] ? logit[i] : top;
  for (int i = 0; i < K; ++i) total += logit[i] = exp(logit[i] - top);
  for (int i = 0; i < K; ++i) logit[i] /= total;
}

// In place: dL/dp becomes dL/dlogit[i] = p_i sum_j p_j (dL/dp_i - dL/dp_j). Summing differences keeps the digits that
// the usual p_i (dL/dp_i - sum_j p_j dL/dp_j) cancels.
template <int K, class A>
ECA_HD void softmax_grad(const A (&p)[K], A (&grad)[K]) {
  A out[K];
  for (int i = 0; i < K; ++i) {
    out[i] = A(0);
    for (int j = 0; j < K; ++j) out[i] += p[j] * (grad[i] - grad[j]);
  }
  for (int i = 0; i < K; ++i) grad[i] = p[i] * out[i];
}

// The channel at position `i` in [-half, count + half) of the padded sequence of means; -1 for a padding zero.
template <class Index>
ECA_HD Index padded_channel(Index i, Index count, bool circular) {
  if (i >= 0 && i < count) return i;
  if (!circular) return -1;
  return i < 0 ? i + count : i - count;
}

}  // namespace ECA_TARGET
}  // namespace eca
