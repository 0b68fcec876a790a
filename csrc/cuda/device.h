// SPDX-License-Identifier: MIT
// L2. What the driver says of the current device.
#pragma once
#include <cuda_runtime.h>

#include "../plan/device.h"

namespace eca {

// cudaSuccess and the facts, or the first error. It asks the driver each time: keep the answer.
cudaError_t query_device(Device* device);

// Whether the current device can run a block, or a cluster, of this configuration; not where the code that is loaded
// was compiled for less than a compute capability. The first time it prepares the kernel for as much shared memory as
// there is, and asks the driver: that takes longer than a small kernel runs, and is not possible at all times.
bool has_room(const void* kernel, const cudaLaunchConfig_t& config, int capability);

}  // namespace eca
