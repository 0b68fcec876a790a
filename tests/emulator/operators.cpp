// SPDX-License-Identifier: MIT
// The GPU backend of the operators on the emulated device: torch.ops.eca_cuda_emulated.*, for CPU tensors. It links the
// product's own kernels and host code; only torch_device.cpp is replaced.
#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/ops_cuda.h"
#include "../../csrc/plan/plan.h"

namespace eca {

OnDeviceOf::OnDeviceOf(const Tensor& x) : index_(0) { require(x.is_cpu(), "x"); }
OnDeviceOf::~OnDeviceOf() = default;
cudaStream_t OnDeviceOf::stream() const { return nullptr; }

// Queried each time, because tests change the device.
const Device& OnDeviceOf::device() const {
  static Device device;
  if (query_device(&device) != cudaSuccess) throw std::runtime_error("the emulated device does not answer");
  return device;
}

STABLE_TORCH_LIBRARY(eca_cuda_emulated, m) { define_operators(m); }
STABLE_TORCH_LIBRARY_IMPL(eca_cuda_emulated, CPU, m) { implement<Cuda>(m); }

}  // namespace eca

// Like _C.set_tuning, for the emulated device. size: of the caller's Rule; false if it differs.
extern "C" __attribute__((visibility("default"))) bool emulator_set_tuning(const eca::Rule* rules, int count,
                                                                           int size) {
  if (size != sizeof *rules) return false;
  eca::set_tuning({rules, rules + count});
  return true;
}
