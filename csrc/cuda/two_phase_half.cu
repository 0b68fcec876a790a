// SPDX-License-Identifier: MIT
// L2. The two-phase kernels for half.
#include "two_phase_launch.cuh"

namespace eca {

template <>
cudaError_t launch_two_phase_of<DType::kHalf, ForwardCall>(const Plan& plan,
                                                           const TwoPhaseArgs<float, ForwardCall>& args,
                                                           cudaStream_t stream) {
  return launch_two_phase_as<__half>(plan, args, stream);
}

template <>
cudaError_t launch_two_phase_of<DType::kHalf, BackwardCall>(const Plan& plan,
                                                            const TwoPhaseArgs<float, BackwardCall>& args,
                                                            cudaStream_t stream) {
  return launch_two_phase_as<__half>(plan, args, stream);
}

}  // namespace eca
