// SPDX-License-Identifier: MIT
// L1. Batch norm of one channel: u = scale (x - mean) + bias = scale x + shift.
#pragma once
#include <cmath>

#include "vector.cuh"

namespace eca {

template <class A>
struct NormOf {
  A mean, bias, rstd, scale;  // rstd: 1 / sqrt(variance + eps)

  __device__ A of(A x) const { return scale * (x - mean) + bias; }
  __device__ A shift() const { return bias - scale * mean; }
};

template <class A>
__device__ NormOf<A> norm_of(const NormParameters& p, int64_t c) {
  using std::sqrt;
  const A rstd = A(1) / sqrt(read<A>(p.var, c) + static_cast<A>(p.eps));
  return {read<A>(p.mean, c), p.bias.data ? read<A>(p.bias, c) : A(0), rstd,
          p.weight.data ? read<A>(p.weight, c) * rstd : rstd};
}

}  // namespace eca
