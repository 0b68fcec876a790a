// SPDX-License-Identifier: MIT
// L3. What both ways to build the library share: setup.py's (ops.cpp) and that of Hugging Face's kernel-builder
// (torch-ext/torch_binding.cpp), which gives the operators a namespace of their own so that a process can hold several
// builds.
#pragma once
#include <torch/csrc/stable/library.h>

#include "options.h"

#ifndef ECA_NAMESPACE
#define ECA_NAMESPACE eca_cuda
#endif

// ECA_NAMESPACE may be a macro: expanded here, before torch's macros make a string of it.
#define ECA_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)
#define ECA_LIBRARY_IMPL(name, key, m) STABLE_TORCH_LIBRARY_IMPL(name, key, m)

namespace eca {

// The bits of the operators' `flags` by the names that Python has for them.
struct NamedOption {
  const char* name;
  Option value;
};
inline constexpr NamedOption kNamedOptions[] = {
    {"CIRCULAR", kCircular},          {"HARD_SIGMOID", kHardSigmoid},     {"RELU", kRelu},
    {"CROSS_CHANNEL", kCrossChannel}, {"SINGLE_SIGMOID", kSingleSigmoid}, {"GRAD_RESIDUAL", kGradResidual},
};

}  // namespace eca
