// SPDX-License-Identifier: MIT
// L3. See torch_device.h. libtorch_cuda is looked up instead of linked, so that this library also loads where torch is
// a CPU-only build.
#include "torch_device.h"

#include <dlfcn.h>

#include <mutex>
#include <string>
#include <vector>

#include "../tensors.h"
#include "device.h"

namespace eca {
namespace {

using GetStream = AOTITorchError (*)(int32_t index, void** stream);

GetStream find_get_stream() {
  // Loaded by torch long ago, or there would be no CUDA tensor.
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  if (!found) throw std::runtime_error("eca_cuda: torch's CUDA library offers no aoti_torch_get_current_cuda_stream");
  return reinterpret_cast<GetStream>(found);
}

// Queried once per device.
const Device& device_at(size_t index) {
  static std::mutex mutex;
  static std::vector<std::pair<bool, Device>> devices(64);
  const std::lock_guard<std::mutex> lock(mutex);
  require(index < devices.size(), "x");
  auto& [known, device] = devices[index];
  if (!known) {
    const cudaError_t error = query_device(&device);
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("eca_cuda: asking the driver about the device failed: ") +
                               cudaGetErrorString(error));
    known = true;
  }
  return device;
}

}  // namespace

OnDeviceOf::OnDeviceOf(const Tensor& x) : index_(x.get_device_index()) {
  require(x.is_cuda(), "x");
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == index_) return;
  DeviceGuardHandle guard;
  check(aoti_torch_create_device_guard(index_, &guard), "changing the current device");
  guard_ = guard;
}

OnDeviceOf::~OnDeviceOf() {
  if (guard_) aoti_torch_delete_device_guard(static_cast<DeviceGuardHandle>(guard_));
}

const Device& OnDeviceOf::device() const { return device_at(static_cast<size_t>(index_)); }

cudaStream_t OnDeviceOf::stream() const {
  static const GetStream get_stream = find_get_stream();
  void* stream = nullptr;
  check(get_stream(index_, &stream), "asking for the current stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace eca
