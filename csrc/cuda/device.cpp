// SPDX-License-Identifier: MIT
// L2. See device.h.
#include "device.h"

#include <map>
#include <mutex>
#include <tuple>

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

int resident_clusters(const void* kernel, const cudaLaunchConfig_t& config, int ranks) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, unsigned, size_t>, int> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const int threads = static_cast<int>(config.blockDim.x);
  const auto key = std::make_tuple(device, kernel, ranks, config.blockDim.x, config.dynamicSmemBytes);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  cudaFuncAttributes attributes{};
  int count = 0;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  const bool clusters = config.numAttrs > 0;
  if (error == cudaSuccess && clusters && attributes.ptxVersion >= 90) {
    error = cudaOccupancyMaxActiveClusters(&count, kernel, &config);
  } else if (error == cudaSuccess && !clusters && attributes.ptxVersion >= 80 && attributes.ptxVersion < 90) {
    int multiprocessors = 0;
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, threads, config.dynamicSmemBytes);
    count *= multiprocessors;
  }
  if (error != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  return known[key] = count;
}

}  // namespace eca
