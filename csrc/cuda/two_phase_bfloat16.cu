// SPDX-License-Identifier: MIT
// L2. The two-phase kernels for bfloat16.
#include "two_phase_launch.cuh"

namespace eca {
template cudaError_t launch_two_phase_of<DType::kBFloat16>(const Plan&, const TwoPhaseArgs<float, ForwardCall>&,
                                                           cudaStream_t);
template cudaError_t launch_two_phase_of<DType::kBFloat16>(const Plan&, const TwoPhaseArgs<float, BackwardCall>&,
                                                           cudaStream_t);
}  // namespace eca
