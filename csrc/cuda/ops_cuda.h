// SPDX-License-Identifier: MIT
// L3. The operators' GPU backend (operators.h). register_cuda.cpp registers it for CUDA tensors, tests/emulator for CPU
// tensors.
#pragma once
#include "../arguments.h"
#include "torch_device.h"

namespace eca {

struct Cuda {
  static Tensor forward(Variant variant, const Tensor& x, const ParameterList& tensors, const NormTensors* norm,
                        const OptionalTensor& residual, int64_t flags, Saved* saved);
  static Gradients backward(Variant variant, const Tensor& grad_y, const Tensor& x, const Saved& saved,
                            const ParameterList& tensors, const NormTensors* norm, int64_t flags);
};

}  // namespace eca
