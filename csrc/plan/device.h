// SPDX-License-Identifier: MIT
// L0. What a launch plan must know of a GPU. At run time cuda/device.cpp asks the driver; python.cpp knows some by
// name.
#pragma once
#include <cstdint>

namespace eca {

constexpr int kMostBlocks = 16;  // of a cluster

struct Device {
  const char* name;
  int capability;  // 90 for compute capability 9.0
  int multiprocessors;
  int max_threads;                 // of a block
  int threads_per_multiprocessor;  // at once
  int most_blocks;                 // of a cluster; 1 where there are no clusters
  int64_t shared_per_block;        // bytes without asking for more than every kernel may have
  int64_t shared_per_multiprocessor;
  int64_t shared_opt_in;  // bytes of shared memory that a block can have by asking for it
  int64_t l2;             // bytes
};

// Blocks of a cluster that a device of this compute capability may have, if its multiprocessors have room for them.
constexpr int most_blocks_of(int capability) {
  return capability < 90 ? 1 : capability == 90 || capability == 100 || capability == 103 ? kMostBlocks : 8;
}

// The current GPU, as its driver describes it; whether there is one. Null in builds without CUDA;
// cuda/register_cuda.cpp sets it.
extern bool (*driver_device)(Device*);

}  // namespace eca
