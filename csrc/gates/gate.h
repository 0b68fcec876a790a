// SPDX-License-Identifier: MIT
// L0. What a gate is given and what it answers. Each gate is one file beside this one, a struct with
//
//   forward (x, mean, gate)
//       C means of one sample -> C gates
//   backward(x, mean, grad_gate, gate, grad_mean, record, field)
//       dL/dgate -> the gates anew, dL/dmean, and what the parameters' gradients need to know of this sample
//
// x is the executor: it owns the loop over channels (16 lanes at a time on the CPU, a thread each on a GPU), so a gate
// is written once. It offers: each(f), load/store(p, c), sum(f), pad(slot, p, half, circular), window(padded, c, j),
// keep(p, value) and scratch.
//
// Gradients of parameters are sums over samples in the order of the samples. A gate leaves `record` (a few numbers) and
// `field` (C numbers) per sample and says, per parameter, how they combine:
//   kSum    grad[i]    = sum_n record[n][offset + i]
//   kMean   grad[r, c] = sum_n record[n][offset + r] * mean[n][c]
//   kField  grad[r, c] = sum_n record[n][offset + r] * field[n][c]
#pragma once
#include "../options.h"
#include "math.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct GateArgs {
  const A* parameters[kMaxParameters];  // in the order of the operator's arguments; null where optional and absent
  int64_t channels, kernel_size, hidden;
  int64_t flags;

  ECA_HD bool circular() const { return (flags & kCircular) != 0; }
  ECA_HD bool hard() const { return (flags & kHardSigmoid) != 0; }
};

enum class Combine : int { kSum, kMean, kField };

struct ParameterGradient {
  Combine how;
  int64_t offset, count;  // count: numbers for kSum, rows otherwise
};

// z[c] = sum_j w[j] * m[c + j - half] for the channels of c; `padded` comes from x.pad.
template <class X, class A, class C>
ECA_HD auto convolve(X& x, const A* w, int64_t kernel_size, const A* padded, C c) {
  auto z = x.window(padded, c, 0) * typename X::Value(w[0]);
  for (int64_t j = 1; j < kernel_size; ++j) z = z + x.window(padded, c, j) * typename X::Value(w[j]);
  return z;
}

// The transpose: dm[c] = sum_j w[j] * dz[c - j + half].
template <class X, class A, class C>
ECA_HD auto convolve_transposed(X& x, const A* w, int64_t kernel_size, const A* padded, C c) {
  auto dm = x.window(padded, c, kernel_size - 1) * typename X::Value(w[0]);
  for (int64_t j = 1; j < kernel_size; ++j)
    dm = dm + x.window(padded, c, kernel_size - 1 - j) * typename X::Value(w[j]);
  return dm;
}

}  // namespace ECA_TARGET
}  // namespace eca
