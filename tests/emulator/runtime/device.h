// SPDX-License-Identifier: MIT
// The device that the emulator pretends to be: small, so that small launches meet its limits.
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

// All that launches share, and what guards it: launches take turns.
struct Machine {
  std::recursive_mutex mutex;  // so that a kernel that launches gets a report
  Device device;
  int index = 0;  // its number: every one that a test asks for is another device of the machine
  std::vector<Device> all = {device};
  std::map<std::pair<int, const void*>, Attributes> attributes;
  Attributes& of(const void* kernel) { return attributes[{index, kernel}]; }
  std::atomic<long> launches = 0, blocks = 0;
};
Machine& machine();

// Both return the error, which cudaGetLastError will, too.
cudaError_t remember(cudaError_t);
cudaError_t cluster_shape(const cudaLaunchConfig_t&, dim3& shape);

}  // namespace emulator
