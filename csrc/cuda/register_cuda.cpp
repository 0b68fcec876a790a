// SPDX-License-Identifier: MIT
// L3. Makes the GPU backend the operators' implementation for CUDA tensors.
#include "../library.h"
#include "ops_cuda.h"

namespace eca {
namespace {

ECA_LIBRARY_IMPL(ECA_NAMESPACE, CUDA, m) { implement<Cuda>(m); }

}  // namespace
}  // namespace eca
