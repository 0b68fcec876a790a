// SPDX-License-Identifier: MIT
// Launches: what the device refuses, and the state of a launch.
#include "device.h"
#include "machine.h"
#include "schedule.h"

#include <algorithm>

namespace emulator {

namespace {

size_t volume(dim3 d) { return size_t(d.x) * d.y * d.z; }

std::vector<dim3> cluster_origins(dim3 grid, dim3 shape) {
  std::vector<dim3> origins;
  for (unsigned z = 0; z < grid.z; z += shape.z)
    for (unsigned y = 0; y < grid.y; y += shape.y)
      for (unsigned x = 0; x < grid.x; x += shape.x) origins.emplace_back(x, y, z);
  return origins;
}

// Parties for all threads and blocks that may be resident and, in larger launches, hundreds more: a cluster should not
// reuse those of the cluster before it.
void provide_parties(dim3 grid, dim3 block, dim3 cluster) {
  const size_t each = volume(block) + 1;
  const size_t resident = most_resident() + most_resident() / volume(block), one_cluster = volume(cluster) * each;
  Party::provide(std::min(volume(grid) * each, std::max(resident + 512, 2 * one_cluster)));
}

}  // namespace

cudaError_t cluster_shape(const cudaLaunchConfig_t& config, dim3& shape) {
  shape = dim3(1, 1, 1);
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const auto& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension)
      shape = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
    else if (attribute.id != cudaLaunchAttributeIgnore &&
             attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization)  // kernels run one after another
      return cudaErrorNotSupported;                                               // by the emulator
  }
  return cudaSuccess;
}

cudaError_t Device::refusal(const cudaLaunchConfig_t& config, const void* kernel, dim3 cluster) const {
  auto& attributes = machine().of(kernel);
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (compute_capability < 75) return cudaErrorNoKernelImageForDevice;  // as for code built for 7.5 and later
  if (!volume(grid) || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (!volume(block) || block.z > 64 || volume(block) > size_t(max_threads_per_block))
    return cudaErrorInvalidConfiguration;
  const int opted = attributes[cudaFuncAttributeMaxDynamicSharedMemorySize];
  if (config.dynamicSmemBytes > size_t(std::max(shared_bytes_without_opt_in(), opted))) return cudaErrorInvalidValue;
  if (volume(cluster) > 1 && !has_clusters()) return cudaErrorNotSupported;
  const size_t largest = attributes[cudaFuncAttributeNonPortableClusterSizeAllowed] ? 16 : 8;
  if (!volume(cluster) || volume(cluster) > largest || grid.x % cluster.x || grid.y % cluster.y || grid.z % cluster.z)
    return cudaErrorInvalidClusterSize;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body) {
  const std::lock_guard lock(machine().mutex);
  if (self) fault("a launch by a kernel", Where());
  dim3 shape;
  if (const auto error = cluster_shape(config, shape)) return remember(error);
  if (const auto error = machine().device.refusal(config, kernel, shape)) return remember(error);
  ++machine().launches;
  machine().blocks += long{config.gridDim.x} * config.gridDim.y * config.gridDim.z;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  provide_parties(gridDim, blockDim, shape);

  Launch state{&body, shape, config.dynamicSmemBytes};
  struct Running {
    explicit Running(Launch& launch) { running = &launch; }
    ~Running() {
      running->finish.acquire();  // all its threads happen before what follows
      running = nullptr;
    }
  } const frame(state);
  run_clusters(cluster_origins(gridDim, shape));
  return cudaSuccess;
}

}  // namespace emulator
