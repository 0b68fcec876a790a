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
  device->copy_rate = 0;  // not among what a driver says
  return error;
}

namespace {

// Attributes belong to the kernel, not to the launch, and other threads may launch it with other plans: so each is set
// to the one value that serves all.
cudaError_t prepare(const void* kernel, bool clusters, int shared_limit) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_limit);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  if (error == cudaSuccess && clusters)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

cudaError_t ask(const void* kernel, const cudaLaunchConfig_t& config, int device, bool clusters, int* count) {
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  if (clusters) return attributes.ptxVersion < 90 ? error : cudaOccupancyMaxActiveClusters(count, kernel, &config);
  if (attributes.ptxVersion < 80 || attributes.ptxVersion >= 90) return error;
  int multiprocessors = 0;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, kernel, static_cast<int>(config.blockDim.x),
                                                        config.dynamicSmemBytes);
  *count *= multiprocessors;
  return error;
}

}  // namespace

int resident_clusters(const void* kernel, const cudaLaunchConfig_t& config, int ranks, int shared_limit) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, unsigned, size_t>, int> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(device, kernel, ranks, config.blockDim.x, config.dynamicSmemBytes);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  const bool clusters = config.numAttrs > 0;
  int count = 0;
  cudaError_t error = prepare(kernel, clusters, shared_limit);
  if (error == cudaSuccess) error = ask(kernel, config, device, clusters, &count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    count = 0;
  }
  return known[key] = count;
}

}  // namespace eca
