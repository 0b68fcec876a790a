// SPDX-License-Identifier: MIT
// L3. The operators' signatures, the same for every backend. A backend offers
//   forward (variant, x, parameters, norm or null, residual, flags, saved or null) -> y
//   backward(variant, grad_y, x, saved, parameters, norm or null, flags)
//                                         -> {grad_x, grad_residual, gradients of the parameters, of the norm's two}
// ops.cpp holds the schemas. They are private: the differentiable functions are in eca_cuda/functional.py.
#pragma once
#include <array>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace eca {

// In the order of the operator's arguments; null where absent.
using ParameterList = std::array<const Tensor*, kMaxParameters>;
using Gradients = std::vector<Tensor>;

// What batch norm is given; null where absent. Without mean and variance it takes those of x.
struct NormTensors {
  const Tensor *weight, *bias, *mean, *var;
  double eps;
};

// What forward keeps for backward. Of the norm only with one.
struct Saved {
  OptionalTensor mean, signs, norm_mean, norm_var;
};

template <class Backend>
struct Operators {
  using T = const Tensor&;
  using Optional = const OptionalTensor&;
  using Three = std::tuple<Tensor, Tensor, Tensor>;

  static const Tensor* pointer(Optional t) { return t ? &*t : nullptr; }
  static Tensor infer(Variant v, T x, const ParameterList& p, Optional residual, int64_t flags) {
    return Backend::forward(v, x, p, nullptr, residual, flags, nullptr);
  }
  static Three forward(Variant v, T x, const ParameterList& p, Optional residual, int64_t flags) {
    Saved saved;
    Tensor y = Backend::forward(v, x, p, nullptr, residual, flags, &saved);
    return {std::move(y), std::move(*saved.mean), std::move(*saved.signs)};
  }
  static Gradients backward(Variant v, T grad_y, T x, T mean, Optional signs, const ParameterList& p, int64_t flags) {
    return Backend::backward(v, grad_y, x, Saved{mean, signs, {}, {}}, p, nullptr, flags);
  }

  static Tensor eca_infer(T x, T w, Optional b, Optional residual, int64_t flags) {
    return infer(Variant::kEca, x, {&w, pointer(b)}, residual, flags);
  }
  static Three eca_forward(T x, T w, Optional b, Optional residual, int64_t flags) {
    return forward(Variant::kEca, x, {&w, pointer(b)}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor> eca_backward(T grad_y, T x, T mean, Optional signs, T w, Optional b,
                                                                 int64_t flags) {
    Gradients g = backward(Variant::kEca, grad_y, x, mean, signs, {&w, pointer(b)}, flags);
    return {g[0], g[1], g[2], g[3]};
  }

  static Tensor multi_kernel_infer(T x, T w3, T w5, T w7, T mix_w, T mix_b, Optional residual, int64_t flags) {
    return infer(Variant::kMultiKernel, x, {&w3, &w5, &w7, &mix_w, &mix_b}, residual, flags);
  }
  static Three multi_kernel_forward(T x, T w3, T w5, T w7, T mix_w, T mix_b, Optional residual, int64_t flags) {
    return forward(Variant::kMultiKernel, x, {&w3, &w5, &w7, &mix_w, &mix_b}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> multi_kernel_backward(
      T grad_y, T x, T mean, Optional signs, T w3, T w5, T w7, T mix_w, T mix_b, int64_t flags) {
    Gradients g = backward(Variant::kMultiKernel, grad_y, x, mean, signs, {&w3, &w5, &w7, &mix_w, &mix_b}, flags);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
  }

  static Tensor bidirectional_infer(T x, T wf, T wb, T w1, T b1, T w2, T b2, Optional residual, int64_t flags) {
    return infer(Variant::kBidirectional, x, {&wf, &wb, &w1, &b1, &w2, &b2}, residual, flags);
  }
  static Three bidirectional_forward(T x, T wf, T wb, T w1, T b1, T w2, T b2, Optional residual, int64_t flags) {
    return forward(Variant::kBidirectional, x, {&wf, &wb, &w1, &b1, &w2, &b2}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bidirectional_backward(
      T grad_y, T x, T mean, Optional signs, T wf, T wb, T w1, T b1, T w2, T b2, int64_t flags) {
    Gradients g = backward(Variant::kBidirectional, grad_y, x, mean, signs, {&wf, &wb, &w1, &b1, &w2, &b2}, flags);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
  }

  static Tensor norm_infer(T x, T w, Optional b, Optional norm_w, Optional norm_b, T norm_mean, T norm_var, double eps,
                           Optional residual, int64_t flags) {
    const NormTensors norm{pointer(norm_w), pointer(norm_b), &norm_mean, &norm_var, eps};
    return Backend::forward(Variant::kEca, x, {&w, pointer(b)}, &norm, residual, flags, nullptr);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_forward(T x, T w, Optional b, Optional norm_w,
                                                                         Optional norm_b, Optional norm_mean,
                                                                         Optional norm_var, double eps,
                                                                         Optional residual, int64_t flags) {
    const NormTensors norm{pointer(norm_w), pointer(norm_b), pointer(norm_mean), pointer(norm_var), eps};
    Saved saved;
    Tensor y = Backend::forward(Variant::kEca, x, {&w, pointer(b)}, &norm, residual, flags, &saved);
    return {std::move(y), std::move(*saved.mean), std::move(*saved.norm_mean), std::move(*saved.norm_var),
            std::move(*saved.signs)};
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> norm_backward(T grad_y, T x, T mean, Optional signs,
                                                                                  T w, Optional b, Optional norm_w,
                                                                                  Optional norm_b, T norm_mean,
                                                                                  T norm_var, double eps,
                                                                                  int64_t flags) {
    const NormTensors norm{pointer(norm_w), pointer(norm_b), &norm_mean, &norm_var, eps};
    Gradients g = Backend::backward(Variant::kEca, grad_y, x, Saved{mean, signs, norm_mean, norm_var}, {&w, pointer(b)},
                                    &norm, flags);
    return {g[0], g[1], g[2], g[3], g[4], g[5]};
  }
};

template <class Backend, class Library>
void implement(Library& m) {
  using Ops = Operators<Backend>;
  m.impl("eca_infer", TORCH_BOX(&Ops::eca_infer));
  m.impl("eca_forward", TORCH_BOX(&Ops::eca_forward));
  m.impl("eca_backward", TORCH_BOX(&Ops::eca_backward));
  m.impl("multi_kernel_eca_infer", TORCH_BOX(&Ops::multi_kernel_infer));
  m.impl("multi_kernel_eca_forward", TORCH_BOX(&Ops::multi_kernel_forward));
  m.impl("multi_kernel_eca_backward", TORCH_BOX(&Ops::multi_kernel_backward));
  m.impl("bidirectional_eca_infer", TORCH_BOX(&Ops::bidirectional_infer));
  m.impl("bidirectional_eca_forward", TORCH_BOX(&Ops::bidirectional_forward));
  m.impl("bidirectional_eca_backward", TORCH_BOX(&Ops::bidirectional_backward));
  m.impl("batch_norm_eca_infer", TORCH_BOX(&Ops::norm_infer));
  m.impl("batch_norm_eca_forward", TORCH_BOX(&Ops::norm_forward));
  m.impl("batch_norm_eca_backward", TORCH_BOX(&Ops::norm_backward));
}

}  // namespace eca
