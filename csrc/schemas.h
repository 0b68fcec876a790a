// SPDX-License-Identifier: MIT
// L3. The schemas of the private operators.
//
// y = relu(x * gate + residual); mean is [N, C] in the accumulator's dtype; signs (problem.h) is uint8 [N, bytes],
// empty without kRelu. Backward is given signs exactly when flags holds kRelu; grad_residual is empty unless flags
// holds kGradResidual; the gradient of an absent bias is empty.
//
// batch_norm_eca: x is normalised first, by norm_mean and norm_var [C]; forward without them takes the statistics of x
// and returns these, biased, in the accumulator's dtype. mean is still that of x.
#pragma once

namespace eca {

#define ECA_PARAMETERS "Tensor weight, Tensor? bias"
#define MULTI_KERNEL_PARAMETERS "Tensor weight3, Tensor weight5, Tensor weight7, Tensor mix_weight, Tensor mix_bias"
#define BIDIRECTIONAL_PARAMETERS                                                              \
  "Tensor weight_forward, Tensor weight_backward, Tensor hidden_weight, Tensor hidden_bias, " \
  "Tensor mix_weight, Tensor mix_bias"

#define NORM_PARAMETERS ECA_PARAMETERS ", Tensor? norm_weight, Tensor? norm_bias"

template <class Library>
void define_operators(Library& m) {
  m.def("eca_infer(Tensor x, " ECA_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("eca_forward(Tensor x, " ECA_PARAMETERS
        ", Tensor? residual, int flags) -> (Tensor y, Tensor mean, Tensor signs)");
  m.def("eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs, " ECA_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  m.def("multi_kernel_eca_infer(Tensor x, " MULTI_KERNEL_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("multi_kernel_eca_forward(Tensor x, " MULTI_KERNEL_PARAMETERS
        ", Tensor? residual, int flags) -> (Tensor y, Tensor mean, Tensor signs)");
  m.def("multi_kernel_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs, " MULTI_KERNEL_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight3, Tensor grad_weight5,"
        " Tensor grad_weight7, Tensor grad_mix_weight, Tensor grad_mix_bias)");
  m.def("bidirectional_eca_infer(Tensor x, " BIDIRECTIONAL_PARAMETERS ", Tensor? residual, int flags) -> Tensor");
  m.def("bidirectional_eca_forward(Tensor x, " BIDIRECTIONAL_PARAMETERS
        ", Tensor? residual, int flags) -> (Tensor y, Tensor mean, Tensor signs)");
  m.def("bidirectional_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs, " BIDIRECTIONAL_PARAMETERS
        ", int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight_forward,"
        " Tensor grad_weight_backward, Tensor grad_hidden_weight, Tensor grad_hidden_bias, Tensor grad_mix_weight,"
        " Tensor grad_mix_bias)");
  m.def("batch_norm_eca_infer(Tensor x, " NORM_PARAMETERS
        ", Tensor norm_mean, Tensor norm_var, float eps, Tensor? residual, int flags) -> Tensor");
  m.def("batch_norm_eca_forward(Tensor x, " NORM_PARAMETERS
        ", Tensor? norm_mean, Tensor? norm_var, float eps, Tensor? residual, int flags)"
        " -> (Tensor y, Tensor mean, Tensor norm_mean, Tensor norm_var, Tensor signs)");
  m.def("batch_norm_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs, " NORM_PARAMETERS
        ", Tensor norm_mean, Tensor norm_var, float eps, int flags)"
        " -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias, Tensor grad_norm_weight,"
        " Tensor grad_norm_bias)");
}

}  // namespace eca
