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
  device->most_blocks = most_blocks_of(device->capability);
  return error;
}

namespace {

// Attributes belong to the kernel, and other threads may launch it with other plans: each is set to a value that serves
// all of them.
cudaError_t prepare(const void* kernel, int device, bool cluster) {
  int shared = 0;
  cudaError_t error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
  if (error == cudaSuccess && cluster)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

cudaError_t ask_room(const void* kernel, const cudaLaunchConfig_t& config, int capability, int* count) {
  cudaFuncAttributes attributes{};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess || attributes.ptxVersion < capability) return error;
  if (config.numAttrs == 0)
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, kernel, static_cast<int>(config.blockDim.x),
                                                         config.dynamicSmemBytes);
  return cudaOccupancyMaxActiveClusters(count, kernel, &config);
}

}  // namespace

bool has_room(const void* kernel, const cudaLaunchConfig_t& config, int capability) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*, int, unsigned, size_t>, bool> known;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  const int blocks = config.numAttrs ? static_cast<int>(config.attrs->val.clusterDim.x) : 1;
  const auto key = std::make_tuple(device, kernel, blocks, config.blockDim.x, config.dynamicSmemBytes);
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  int count = 0;
  cudaError_t error = prepare(kernel, device, blocks > 1);
  if (error == cudaSuccess) error = ask_room(kernel, config, capability, &count);
  if (error != cudaSuccess) cudaGetLastError();
  const bool room = error == cudaSuccess && count > 0;
  // Other errors may be transient.
  if (error == cudaSuccess || error == cudaErrorInvalidClusterSize) known[key] = room;
  return room;
}

}  // namespace eca
