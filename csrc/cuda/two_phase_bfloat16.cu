// SPDX-License-Identifier: MIT
// L2. The two-phase kernels for bfloat16.
#include "two_phase_launch.cuh"

namespace eca {

template <>
cudaError_t launch_two_phase_of<DType::kBFloat16, ForwardCall>(const Plan& plan,
                                                               const TwoPhaseArgs<float, ForwardCall>& args,
                                                               cudaStream_t stream) {
  return launch_two_phase_as<__nv_bfloat16>(plan, args, stream);
}

template <>
cudaError_t launch_two_phase_of<DType::kBFloat16, BackwardCall>(const Plan& plan,
                                                                const TwoPhaseArgs<float, BackwardCall>& args,
                                                                cudaStream_t stream) {
  return launch_two_phase_as<__nv_bfloat16>(plan, args, stream);
}

}  // namespace eca
