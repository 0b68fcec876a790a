// SPDX-License-Identifier: MIT
// L3. Makes the GPU backend the operators' implementation for CUDA tensors.
#include "ops_cuda.h"

namespace eca {
namespace {

STABLE_TORCH_LIBRARY_IMPL(eca_cuda, CUDA, m) { implement<Cuda>(m); }

}  // namespace
}  // namespace eca
