// SPDX-License-Identifier: MIT
// L3. The device and stream of a call, from torch. The emulator links another implementation, for CPU tensors.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include "../plan/device.h"

namespace eca {

// Makes the device of x the current one for its lifetime.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& x);  // std::invalid_argument if the kernels can't run there
  ~OnDeviceOf();
  OnDeviceOf(const OnDeviceOf&) = delete;
  OnDeviceOf& operator=(const OnDeviceOf&) = delete;

  const Device& device() const;
  cudaStream_t stream() const;  // the stream that torch's own kernels would use now

 private:
  int index_;
  void* guard_ = nullptr;
};

}  // namespace eca
