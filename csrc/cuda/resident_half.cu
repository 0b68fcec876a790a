// SPDX-License-Identifier: MIT
// L2. The resident kernels for half.
#include "resident_launch.cuh"

namespace eca {

template <>
cudaError_t launch_resident_of<DType::kHalf, ForwardCall>(const ResidentArgs<float, ForwardCall>& args,
                                                          cudaStream_t stream, Ask ask) {
  return launch_resident_as<__half>(args, stream, ask);
}

template <>
cudaError_t launch_resident_of<DType::kHalf, BackwardCall>(const ResidentArgs<float, BackwardCall>& args,
                                                           cudaStream_t stream, Ask ask) {
  return launch_resident_as<__half>(args, stream, ask);
}

}  // namespace eca
