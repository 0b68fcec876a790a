// SPDX-License-Identifier: MIT
// L2. What the driver says of the current device.
#pragma once
#include <cuda_runtime.h>

#include "../plan/device.h"

namespace eca {

// cudaSuccess and the facts, or the first error. It asks the driver each time: keep the answer.
cudaError_t query_device(Device* device);

// How many clusters of the configuration run at once on the current device; 0 where they can't, or where the code that
// is loaded was compiled for an architecture without clusters. The driver is asked once per kernel and configuration:
// it takes longer to answer than a small kernel to run, and may not be asked at all times.
int resident_clusters(const void* kernel, const cudaLaunchConfig_t& config, int ranks);

}  // namespace eca
