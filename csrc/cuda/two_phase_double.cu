// SPDX-License-Identifier: MIT
// L2. The two-phase kernels for double.
#include "two_phase_launch.cuh"

namespace eca {
template cudaError_t launch_two_phase_of<DType::kDouble>(const Plan&, const TwoPhaseArgs<double, ForwardCall>&,
                                                         cudaStream_t);
template cudaError_t launch_two_phase_of<DType::kDouble>(const Plan&, const TwoPhaseArgs<double, BackwardCall>&,
                                                         cudaStream_t);
}  // namespace eca
