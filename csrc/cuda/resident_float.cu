// SPDX-License-Identifier: MIT
// L2. The resident kernels for float.
#include "resident_launch.cuh"

namespace eca {

template <>
cudaError_t launch_resident_of<DType::kFloat, ForwardCall>(const ResidentArgs<float, ForwardCall>& args,
                                                           cudaStream_t stream) {
  return launch_resident_as<float>(args, stream);
}

template <>
cudaError_t launch_resident_of<DType::kFloat, BackwardCall>(const ResidentArgs<float, BackwardCall>& args,
                                                            cudaStream_t stream) {
  return launch_resident_as<float>(args, stream);
}

}  // namespace eca
