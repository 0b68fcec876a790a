// SPDX-License-Identifier: MIT
// L2. See device.h.
#include "device.h"

namespace eca {

cudaError_t query_device(Device* device) {
  int index = 0;
  cudaError_t error = cudaGetDevice(&index);
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, attribute, index);
    return value;
  };
  device->name = "";
  device->capability = 10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor);
  device->multiprocessors = ask(cudaDevAttrMultiProcessorCount);
  device->max_threads = ask(cudaDevAttrMaxThreadsPerBlock);
  device->threads_per_multiprocessor = ask(cudaDevAttrMaxThreadsPerMultiProcessor);
  device->shared_per_block = ask(cudaDevAttrMaxSharedMemoryPerBlock);
  device->shared_per_multiprocessor = ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  device->shared_opt_in = ask(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device->l2 = ask(cudaDevAttrL2CacheSize);
  device->copy_rate = 0;  // nothing is decided by it
  return error;
}

}  // namespace eca
