// SPDX-License-Identifier: MIT
// L3. Registers the GPU backend as the operators' implementation for CUDA tensors, and lets Python query the driver.
#include "../library.h"
#include "../plan/device.h"
#include "device.h"
#include "ops_cuda.h"

namespace eca {
namespace {

const Registration<Cuda> registration("CUDA");

[[maybe_unused]] const bool registered = [] {
  driver_device = [](Device* device) { return query_device(device) == cudaSuccess; };
  return true;
}();

}  // namespace
}  // namespace eca
