// SPDX-License-Identifier: MIT
// L3. The schemas of the private operators.
//
// y = relu(x * gate + residual); mean is [N, C] in the accumulator's dtype. Backward's y is given exactly when flags
// holds kRelu; grad_residual is empty unless flags holds kGradResidual; the gradient of an absent bias is empty.
#pragma once

namespace eca {

#define ECA_PARAMETERS "Tensor weight, Tensor? bias"
#define MULTI_KERNEL_PARAMETERS "Tensor weight3, Tensor weight5, Tensor weight7, Tensor mix_weight, Tensor mix_bias"
#define BIDIRECTIONAL_PARAMETERS                                                              \
  "Tensor weight_forward, Tensor weight_backward, Tensor hidden_weight, Tensor hidden_bias, " \
  "Tensor mix_weight, Tensor mix_bias"

template <class Library>
void define_operators(Library& m) {
  m.def("eca_infer(Tensor x, " ECA_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("eca_forward(Tensor x, " ECA_PARAMETERS ", Tensor? residual, int flags) -> (Tensor y, Tensor mean)");
  m.def("eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? y, " ECA_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  m.def("multi_kernel_eca_infer(Tensor x, " MULTI_KERNEL_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("multi_kernel_eca_forward(Tensor x, " MULTI_KERNEL_PARAMETERS
        ", Tensor? residual, int flags) -> (Tensor y, Tensor mean)");
  m.def("multi_kernel_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? y, " MULTI_KERNEL_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight3, Tensor grad_weight5,"
        " Tensor grad_weight7, Tensor grad_mix_weight, Tensor grad_mix_bias)");
  m.def("bidirectional_eca_infer(Tensor x, " BIDIRECTIONAL_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("bidirectional_eca_forward(Tensor x, " BIDIRECTIONAL_PARAMETERS
        ", Tensor? residual, int flags) -> (Tensor y, Tensor mean)");
  m.def("bidirectional_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? y, " BIDIRECTIONAL_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight_forward,"
        " Tensor grad_weight_backward, Tensor grad_hidden_weight, Tensor grad_hidden_bias, Tensor grad_mix_weight,"
        " Tensor grad_mix_bias)");
}

}  // namespace eca
