// SPDX-License-Identifier: MIT
// L2. The two-phase kernels for double.
#include "two_phase_launch.cuh"

namespace eca {

template <>
cudaError_t launch_two_phase_of<DType::kDouble, ForwardCall>(const Plan& plan,
                                                             const TwoPhaseArgs<double, ForwardCall>& args,
                                                             cudaStream_t stream) {
  return launch_two_phase_as<double>(plan, args, stream);
}

template <>
cudaError_t launch_two_phase_of<DType::kDouble, BackwardCall>(const Plan& plan,
                                                              const TwoPhaseArgs<double, BackwardCall>& args,
                                                              cudaStream_t stream) {
  return launch_two_phase_as<double>(plan, args, stream);
}

}  // namespace eca
