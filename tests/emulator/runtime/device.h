// SPDX-License-Identifier: MIT
// The emulated device: small, so that small launches reach its limits.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace emulator {

struct Device {
  int multiprocessors = 3;
  int max_threads_per_block = 64;
  int shared_bytes_per_block = 227 << 10;  // with opting in
  int l2_bytes = 64 << 10;
  int compute_capability = 90;

  static constexpr int kThreadsPerMultiprocessor = 2048;
  static constexpr int kBlocksPerMultiprocessor = 32;
  static constexpr int kReservedSharedBytes = 1 << 10;  // of each block
  int shared_bytes_without_opt_in() const {
    return shared_bytes_per_block < 48 << 10 ? shared_bytes_per_block : 48 << 10;
  }
  int shared_bytes_per_multiprocessor() const { return shared_bytes_per_block + kReservedSharedBytes; }
  bool has_clusters() const { return compute_capability >= 90; }
  int blocks_per_multiprocessor(size_t threads, size_t dynamic_bytes) const;
  cudaError_t refusal(const cudaLaunchConfig_t&, const void* kernel, dim3 cluster_shape) const;
  bool operator==(const Device&) const = default;
};

using Attributes = std::map<cudaFuncAttribute, int>;

// What launches share, and its lock: launches take turns.
struct Machine {
  std::recursive_mutex mutex;  // recursive, so that a launch by a kernel is reported
  Device device;
  int index = 0;  // of the device in `all`: each that a test has asked for
  std::vector<Device> all = {device};
  std::map<std::pair<int, const void*>, Attributes> attributes;
  Attributes& of(const void* kernel) { return attributes[{index, kernel}]; }
  std::atomic<long> launches = 0, blocks = 0;
};
Machine& machine();

// remember returns the error, and makes cudaGetLastError return it.
cudaError_t remember(cudaError_t);
cudaError_t cluster_shape(const cudaLaunchConfig_t&, dim3& shape);

}  // namespace emulator
