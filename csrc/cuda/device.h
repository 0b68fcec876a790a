// SPDX-License-Identifier: MIT
// L2. What the driver says of the current device.
#pragma once
#include <cuda_runtime.h>

#include "../plan/device.h"

namespace eca {

// Asks the driver each time: cache the answer. Returns the first error.
cudaError_t query_device(Device* device);

// Whether the current device can run a block, or a cluster, of this configuration, by code compiled for at least this
// compute capability. The first call sets the kernel's attributes, up to all shared memory, and asks the driver, which
// takes longer than a small kernel runs; the answer is cached.
bool has_room(const void* kernel, const cudaLaunchConfig_t& config, int capability);

}  // namespace eca
