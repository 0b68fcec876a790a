// SPDX-License-Identifier: MIT
// L3. What torch knows of the device of a call. The emulator's tests link another implementation, for CPU tensors.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

#include "../plan/device.h"

namespace eca {

// While it lives, the device of x is the current one.
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
