// SPDX-License-Identifier: MIT
// The GPU backend of the operators on the emulated device: torch.ops.eca_cuda_emulated.*, for CPU tensors. It links the
// product's own kernels and host code; only what torch knows of a CUDA device is replaced.
#include "../../csrc/cuda/device.h"
#include "../../csrc/cuda/ops_cuda.h"
#include "../../csrc/plan/plan.h"
#include "../../csrc/schemas.h"

namespace eca {

OnDeviceOf::OnDeviceOf(const Tensor& x) : index_(0) { require(x.is_cpu(), "x"); }
OnDeviceOf::~OnDeviceOf() = default;
cudaStream_t OnDeviceOf::stream() const { return nullptr; }

// Asked for each time, because tests change the device.
const Device& OnDeviceOf::device() const {
  static Device device;
  if (query_device(&device) != cudaSuccess) throw std::runtime_error("the emulated device does not answer");
  return device;
}

STABLE_TORCH_LIBRARY(eca_cuda_emulated, m) { define_operators(m); }
STABLE_TORCH_LIBRARY_IMPL(eca_cuda_emulated, CPU, m) { implement<Cuda>(m); }

}  // namespace eca

// What _C.set_tuning does for the real device; false if the caller has another idea of a rule than this.
extern "C" __attribute__((visibility("default"))) bool emulator_set_tuning(const eca::Rule* rules, int count,
                                                                           int size) {
  if (size != sizeof *rules) return false;
  eca::set_tuning({rules, rules + count});
  return true;
}
