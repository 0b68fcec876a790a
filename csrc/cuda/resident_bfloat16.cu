// SPDX-License-Identifier: MIT
// L2. The resident kernels for bfloat16.
#include "resident_launch.cuh"

namespace eca {

template <>
cudaError_t launch_resident_of<DType::kBFloat16, ForwardCall>(const ResidentArgs<float, ForwardCall>& args,
                                                              cudaStream_t stream, Ask ask) {
  return launch_resident_as<__nv_bfloat16>(args, stream, ask);
}

template <>
cudaError_t launch_resident_of<DType::kBFloat16, BackwardCall>(const ResidentArgs<float, BackwardCall>& args,
                                                               cudaStream_t stream, Ask ask) {
  return launch_resident_as<__nv_bfloat16>(args, stream, ask);
}

}  // namespace eca
