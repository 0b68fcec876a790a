// SPDX-License-Identifier: MIT
// L2. The one-pass kernels for float.
#include "one_pass_launch.cuh"

namespace eca {
template cudaError_t launch_one_pass_of<DType::kFloat>(const OnePassArgs<ForwardCall>&, int, cudaStream_t, Ask);
template cudaError_t launch_one_pass_of<DType::kFloat>(const OnePassArgs<BackwardCall>&, int, cudaStream_t, Ask);
}  // namespace eca
