// SPDX-License-Identifier: MIT
// L3. What both ways to build the library share: setup.py's (ops.cpp) and that of Hugging Face's kernel-builder
// (torch-ext/torch_binding.cpp), which gives the operators a namespace of their own so that a process can hold several
// builds.
#pragma once
#include <torch/csrc/stable/library.h>

#include <optional>

#include "operators.h"
#include "options.h"
#include "schemas.h"

#ifndef ECA_NAMESPACE
#define ECA_NAMESPACE eca_cuda
#endif

// ECA_NAMESPACE may be a macro: expanded before it is made a string.
#define ECA_QUOTED(name) #name
#define ECA_STRING(name) ECA_QUOTED(name)

namespace eca {

using torch::stable::detail::StableLibrary;

// Defines the operators at the first call. False in a second copy of the library in a process: torch keeps the
// operators of the first, and whatever the second one registered would end the process.
inline bool is_first_copy() {
  static const bool first = [] {
    constexpr const char* kName = ECA_STRING(ECA_NAMESPACE);
    TorchLibraryHandle claim;  // on the namespace: torch grants it once, until the process ends
    if (aoti_torch_library_init_def(kName, __FILE__, __LINE__, &claim) != TORCH_SUCCESS) return false;
    static StableLibrary operators(StableLibrary::Kind::FRAGMENT, kName, nullptr, __FILE__, __LINE__);
    define_operators(operators);
    return true;
  }();
  return first;
}

// Registers a backend's kernels for the tensors of a dispatch key, for as long as it lives.
template <class Backend>
class Registration {
 public:
  explicit Registration(const char* key) {
    if (!is_first_copy()) return;
    library_.emplace(StableLibrary::Kind::IMPL, ECA_STRING(ECA_NAMESPACE), key, __FILE__, __LINE__);
    implement<Backend>(*library_);
  }

 private:
  std::optional<StableLibrary> library_;
};

// The bits of the operators' `flags` by the names that Python has for them.
struct NamedOption {
  const char* name;
  Option value;
};
inline constexpr NamedOption kNamedOptions[] = {
    {"CIRCULAR", kCircular},
    {"HARD_SIGMOID", kHardSigmoid},
    {"RELU", kRelu},
    {"CROSS_CHANNEL", kCrossChannel},
    {"SINGLE_SIGMOID", kSingleSigmoid},
    {"GRAD_RESIDUAL", kGradResidual},
    {"BATCH_STATISTICS", kBatchStatistics},
};

}  // namespace eca
