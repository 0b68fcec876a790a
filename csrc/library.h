// SPDX-License-Identifier: MIT
// L3. The library torch.ops.eca_cuda: defined once in a process, implemented by each backend.
#pragma once
#include <torch/csrc/stable/library.h>

#include <optional>

#include "operators.h"
#include "options.h"

namespace eca {

using torch::stable::detail::StableLibrary;

// Defines the operators at the first call. False in a second copy of the library in a process: torch keeps the
// operators of the first, and any registration by the second would end the process.
inline bool is_first_copy() {
  static const bool first = [] {
    constexpr const char* kName = "eca_cuda";
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
    library_.emplace(StableLibrary::Kind::IMPL, "eca_cuda", key, __FILE__, __LINE__);
    implement<Backend>(*library_);
  }

 private:
  std::optional<StableLibrary> library_;
};

// The bits of the operators' `flags` by their names in Python.
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
