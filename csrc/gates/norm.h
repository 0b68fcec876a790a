// SPDX-License-Identifier: MIT
// L0. Batch norm of one channel, written once for CPU, CUDA and emulator. Followed by a gate g = Gate(mean of u):
//
//   u = scale (x - mean) + bias     scale = weight rstd    rstd = 1 / sqrt(var + eps)
//   y = u g = x (scale g) + shift g                        shift = bias - scale mean
//
// Its gradients follow from two sums over the S positions of each sample, sum = sum_s grad_y and
// dot = sum_s grad_y (x - mean). m is a sample's mean of x, and dm the gradient of the mean of u:
//
//   dg = scale dot + bias sum       dL/du = grad_y g + dm / S, whose two sums are g sum + dm and g dot + dm (m - mean)
//   dbias, dweight / rstd           the two sums of dL/du over all samples
//   dx = grad_y (scale g) + scale dm / S - scale dbias / (N S) - (x - mean) scale rstd dweight / (N S)
//
// without the last two terms if the statistics are not those of x.
#pragma once
#include "math.h"

namespace eca {
inline namespace ECA_TARGET {

// dx = grad_y (scale g) + scale dm / S + x slope - common
template <class A>
struct NormGradients {
  A weight, bias, slope, common;
};

template <class A>
struct ChannelNorm {
  A mean, bias, rstd, scale;

  ECA_HD static ChannelNorm of(A weight, A bias, A mean, A var, A eps) {
    using std::sqrt;
    const A rstd = A(1) / sqrt(var + eps);
    return {mean, bias, rstd, weight * rstd};
  }

  ECA_HD A normalized(A x) const { return scale * (x - mean) + bias; }
  ECA_HD A shift() const { return bias - scale * mean; }

  // dL/dg, from the sums of grad_y.
  ECA_HD A gate_gradient(A sum, A dot) const { return scale * dot + bias * sum; }

  // The sums of grad_y become those of dL/du.
  ECA_HD void add_gate(A g, A dm, A m, A* sum, A* dot) const {
    *sum = g * *sum + dm;
    *dot = g * *dot + dm * (m - mean);
  }

  // From the sums of dL/du over all samples, count = N S. of_batch: the statistics are those of x.
  ECA_HD NormGradients<A> gradients(A sum, A dot, A count, bool of_batch) const {
    const A weight = rstd * dot;
    if (!of_batch) return {weight, sum, A(0), A(0)};
    const A slope = -scale * rstd * weight / count;
    return {weight, sum, slope, scale * sum / count + slope * mean};
  }
};

// The sum of squared distances of `count` numbers from a point that is `distance` away from their mean; squares: the
// same sum about the mean (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance").
template <class A>
ECA_HD A squares_about(A squares, A count, A distance) {
  return squares + count * distance * distance;
}

}  // namespace ECA_TARGET
}  // namespace eca
