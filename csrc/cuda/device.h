// SPDX-License-Identifier: MIT
// L2. What the driver says of the current device.
#pragma once
#include <cuda_runtime.h>

#include "../plan/device.h"

namespace eca {

// cudaSuccess and the facts, or the first error. It asks the driver each time: keep the answer.
cudaError_t query_device(Device* device);

}  // namespace eca
