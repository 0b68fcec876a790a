// SPDX-License-Identifier: MIT
// L2. What the driver says of the current device.
#pragma once
#include <cuda_runtime.h>

#include "../plan/device.h"

namespace eca {

// cudaSuccess and the facts, or the first error. It asks the driver each time: keep the answer.
cudaError_t query_device(Device* device);

// How many clusters of the configuration run at once on the current device (blocks, where it names no cluster); 0 where
// they can't, or where the code that is loaded was compiled for an architecture that can't. The first time it prepares
// the kernel for up to shared_limit bytes of shared memory, and asks the driver: that takes longer than a small kernel
// runs, and is not possible at all times.
int resident_clusters(const void* kernel, const cudaLaunchConfig_t& config, int ranks, int shared_limit);

}  // namespace eca
