// SPDX-License-Identifier: MIT
// L2. Launching a kernel with cudaLaunchKernelEx: g++, which compiles the emulator, does not know kernel<<<>>>.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels.h"

namespace eca {

// The type of the elements of a feature map.
template <DType D>
struct TypeOf;
template <>
struct TypeOf<DType::kFloat> {
  using type = float;
};
template <>
struct TypeOf<DType::kDouble> {
  using type = double;
};
template <>
struct TypeOf<DType::kHalf> {
  using type = __half;
};
template <>
struct TypeOf<DType::kBFloat16> {
  using type = __nv_bfloat16;
};

// A launch with at most one attribute.
struct LaunchConfig {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  LaunchConfig(dim3 grid, int threads, int64_t shared_bytes, cudaStream_t stream) {
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = stream;
    config.attrs = &attribute;
  }
  LaunchConfig(const LaunchConfig&) = delete;  // config points to attribute

  void set_cluster(int blocks) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    config.numAttrs = 1;
  }
  // The kernel may start before the previous one has ended, and waits for that itself.
  void set_programmatic() {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.numAttrs = 1;
  }

  template <class... Parameters, class... Arguments>
  cudaError_t launch(void (*kernel)(Parameters...), Arguments&&... arguments) const {
    return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
  }
};

}  // namespace eca
