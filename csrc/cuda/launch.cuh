// SPDX-License-Identifier: MIT
// L2. Launching a kernel, as cudaLaunchKernelEx does it: kernel<<<>>> is a language of its own, which g++ does not
// speak.
#pragma once
#include <cuda_runtime.h>

namespace eca {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

}  // namespace eca
