// SPDX-License-Identifier: MIT
// L3. The schemas of the private operators, and the pybind11 module eca_cuda._C with what Python needs to know of the
// build. The backends register their kernels in their own files: cpu/ops_cpu.cpp.
//
// y = relu(x * gate + residual); mean is [N, C] in the accumulator's dtype. Backward's y is given exactly when flags
// holds kRelu; grad_residual is empty unless flags holds kGradResidual; the gradient of an absent bias is empty.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

#define ECA_PARAMETERS "Tensor weight, Tensor? bias"
#define MULTI_KERNEL_PARAMETERS "Tensor weight3, Tensor weight5, Tensor weight7, Tensor mix_weight, Tensor mix_bias"
#define BIDIRECTIONAL_PARAMETERS                                                              \
  "Tensor weight_forward, Tensor weight_backward, Tensor hidden_weight, Tensor hidden_bias, " \
  "Tensor mix_weight, Tensor mix_bias"

STABLE_TORCH_LIBRARY(eca_cuda, m) {
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

PYBIND11_MODULE(_C, m) {
  m.attr("CIRCULAR") = static_cast<int>(eca::kCircular);
  m.attr("HARD_SIGMOID") = static_cast<int>(eca::kHardSigmoid);
  m.attr("RELU") = static_cast<int>(eca::kRelu);
  m.attr("CROSS_CHANNEL") = static_cast<int>(eca::kCrossChannel);
  m.attr("SINGLE_SIGMOID") = static_cast<int>(eca::kSingleSigmoid);
  m.attr("GRAD_RESIDUAL") = static_cast<int>(eca::kGradResidual);
  m.def(
      "cpu_kernels", [] { return eca::kernels().name; }, "Name of the instruction set that the CPU kernels use here.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["version"] = ECA_CUDA_VERSION;
        info["torch"] = ECA_CUDA_TORCH;
        info["compiler"] = __VERSION__;
        info["cuda"] = ECA_CUDA_TOOLKIT;
        info["built"] = ECA_CUDA_BUILT;
        return info;
      },
      "What this library was built from: versions of eca_cuda, torch's headers, compiler and CUDA toolkit, and what "
      "for.");
}
