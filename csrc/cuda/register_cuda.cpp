// SPDX-License-Identifier: MIT
// L3. Makes the GPU backend the operators' implementation for CUDA tensors, and the driver's answers known to Python.
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
