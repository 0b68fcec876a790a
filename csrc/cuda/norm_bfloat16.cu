// SPDX-License-Identifier: MIT
// L2. Batch norm's kernels for bfloat16.
#include "norm_launch.cuh"

namespace eca {
template cudaError_t launch_norm_of<DType::kBFloat16>(Norm, const Plan&, const NormArgs<float, ForwardCall>&, int,
                                                      cudaStream_t);
template cudaError_t launch_norm_of<DType::kBFloat16>(Norm, const Plan&, const NormArgs<float, BackwardCall>&, int,
                                                      cudaStream_t);
}  // namespace eca
