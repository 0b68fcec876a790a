// SPDX-License-Identifier: MIT
// L0. What a gate is given and what it answers. Each gate is one file beside this one, a struct with
//
//   forward (x, mean, gate)
//       C means of one sample -> C gates
//   backward(x, mean, grad_gate, gate, grad_mean, record, field)
//       dL/dgate -> the gates anew, dL/dmean, and what the parameters' gradients need to know of this sample
//
// x is the executor: it owns the loops (16 channels at a time on the CPU, one for each thread of a block on a GPU), so
// a gate is written once. It offers
//
//   each(f)                          f(c) for all channels; c is passed on to load(p, c) and store(p, c, value)
//   times(count, f)                  f(j) for the numbers j of [0, count), in any order
//   sum(f)                           the sum of f(c) over the channels, known to all threads
//   sums(count, out, f)              out[j] = sum of f(j, c) over the channels; out is scratch
//   weight(p, j, c)                  p[j, c] of the matrix that weights() names: read for every sample, kept near
//   pad(slot, p, half, circular)     a copy of p[C] with its neighbours, for window(padded, c, j) = padded[c + j]
//   keep(count, p, f)                p[j] = f(j); p is the record
//   keep_sums(count, p, f)           p[j] = sum of f(j, c) over the channels; p is the record
//   scratch                          scratch_size numbers to use freely
//
// Each of them sees what those before it have stored. The channels may be shared out among several blocks, each of
// which has scratch of its own, and sees numbers per channel of its own channels only, but for those that pad returns.
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
  int64_t channels;
  int kernel_size, hidden;
  int64_t flags;

  ECA_HD bool circular() const { return (flags & kCircular) != 0; }
  ECA_HD bool hard() const { return (flags & kHardSigmoid) != 0; }
};

// Numbers that blocks which share out a sample's channels tell each other: those of pad, and those of sums per block.
// Steps that tell something (sum, sums, pad, keep_sums) are kMaxExchanges of plan/resident.h at most, with one or two
// of the kernel's own.
struct Exchanges {
  int64_t padded, per_block;
};

// The parameter [rows, C] that x.weight reads, if there is one.
struct Weights {
  int parameter;
  int rows;
};

enum class Combine : int { kSum, kMean, kField };

struct ParameterGradient {
  Combine how;
  int64_t offset, count;  // count: numbers for kSum, rows otherwise
};

// z[c] = sum_j w[j] * m[c + j - half] for the channels of c; `padded` comes from x.pad.
template <class X, class A, class C>
ECA_HD auto convolve(X& x, const A* w, int kernel_size, const A* padded, C c) {
  auto z = x.window(padded, c, 0) * typename X::Value(w[0]);
  ECA_ROLLED for (int j = 1; j < kernel_size; ++j) z = z + x.window(padded, c, j) * typename X::Value(w[j]);
  return z;
}

// The transpose: dm[c] = sum_j w[j] * dz[c - j + half].
template <class X, class A, class C>
ECA_HD auto convolve_transposed(X& x, const A* w, int kernel_size, const A* padded, C c) {
  auto dm = x.window(padded, c, kernel_size - 1) * typename X::Value(w[0]);
  ECA_ROLLED for (int j = 1; j < kernel_size; ++j) dm =
      dm + x.window(padded, c, kernel_size - 1 - j) * typename X::Value(w[j]);
  return dm;
}

}  // namespace ECA_TARGET
}  // namespace eca
