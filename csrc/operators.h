// SPDX-License-Identifier: MIT
// L3. The operators' signatures, the same for every backend. A backend offers
//   forward (variant, x, parameters, residual, flags, mean or null) -> y
//   backward(variant, grad_y, x, mean, y, parameters, flags) -> {grad_x, grad_residual, gradients of the parameters}
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

template <class Backend>
struct Operators {
  using T = const Tensor&;
  using Optional = const OptionalTensor&;
  using Pair = std::tuple<Tensor, Tensor>;

  static const Tensor* pointer(Optional t) { return t ? &*t : nullptr; }
  static Tensor infer(Variant v, T x, const ParameterList& p, Optional residual, int64_t flags) {
    return Backend::forward(v, x, p, residual, flags, nullptr);
  }
  static Pair forward(Variant v, T x, const ParameterList& p, Optional residual, int64_t flags) {
    OptionalTensor mean;
    Tensor y = Backend::forward(v, x, p, residual, flags, &mean);
    return {std::move(y), std::move(*mean)};
  }

  static Tensor eca_infer(T x, T w, Optional b, Optional residual, int64_t flags) {
    return infer(Variant::kEca, x, {&w, pointer(b)}, residual, flags);
  }
  static Pair eca_forward(T x, T w, Optional b, Optional residual, int64_t flags) {
    return forward(Variant::kEca, x, {&w, pointer(b)}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor> eca_backward(T grad_y, T x, T mean, Optional y, T w, Optional b,
                                                                 int64_t flags) {
    Gradients g = Backend::backward(Variant::kEca, grad_y, x, mean, y, {&w, pointer(b)}, flags);
    return {g[0], g[1], g[2], g[3]};
  }

  static Tensor multi_kernel_infer(T x, T w3, T w5, T w7, T mix_w, T mix_b, Optional residual, int64_t flags) {
    return infer(Variant::kMultiKernel, x, {&w3, &w5, &w7, &mix_w, &mix_b}, residual, flags);
  }
  static Pair multi_kernel_forward(T x, T w3, T w5, T w7, T mix_w, T mix_b, Optional residual, int64_t flags) {
    return forward(Variant::kMultiKernel, x, {&w3, &w5, &w7, &mix_w, &mix_b}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> multi_kernel_backward(
      T grad_y, T x, T mean, Optional y, T w3, T w5, T w7, T mix_w, T mix_b, int64_t flags) {
    Gradients g = Backend::backward(Variant::kMultiKernel, grad_y, x, mean, y, {&w3, &w5, &w7, &mix_w, &mix_b}, flags);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
  }

  static Tensor bidirectional_infer(T x, T wf, T wb, T w1, T b1, T w2, T b2, Optional residual, int64_t flags) {
    return infer(Variant::kBidirectional, x, {&wf, &wb, &w1, &b1, &w2, &b2}, residual, flags);
  }
  static Pair bidirectional_forward(T x, T wf, T wb, T w1, T b1, T w2, T b2, Optional residual, int64_t flags) {
    return forward(Variant::kBidirectional, x, {&wf, &wb, &w1, &b1, &w2, &b2}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bidirectional_backward(
      T grad_y, T x, T mean, Optional y, T wf, T wb, T w1, T b1, T w2, T b2, int64_t flags) {
    Gradients g = Backend::backward(Variant::kBidirectional, grad_y, x, mean, y, {&wf, &wb, &w1, &b1, &w2, &b2}, flags);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
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
}

}  // namespace eca
