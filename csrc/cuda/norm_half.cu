// SPDX-License-Identifier: MIT
// L2. Batch norm's kernels for half.
#include "norm_launch.cuh"

namespace eca {
template cudaError_t launch_norm_of<DType::kHalf>(Norm, const Plan&, const NormArgs<float, ForwardCall>&, int,
                                                  cudaStream_t);
template cudaError_t launch_norm_of<DType::kHalf>(Norm, const Plan&, const NormArgs<float, BackwardCall>&, int,
                                                  cudaStream_t);
}  // namespace eca
