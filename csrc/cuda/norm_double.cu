// SPDX-License-Identifier: MIT
// L2. Batch norm's kernels for double.
#include "norm_launch.cuh"

namespace eca {
template cudaError_t launch_norm_of<DType::kDouble>(Norm, const Plan&, const NormArgs<double, ForwardCall>&, int,
                                                    cudaStream_t);
template cudaError_t launch_norm_of<DType::kDouble>(Norm, const Plan&, const NormArgs<double, BackwardCall>&, int,
                                                    cudaStream_t);
}  // namespace eca
