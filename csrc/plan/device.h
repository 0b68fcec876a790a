// SPDX-License-Identifier: MIT
// L0. What a launch plan depends on of a GPU. cuda/device.cpp asks the driver; python.cpp knows some devices by name.
#pragma once
#include <cstdint>

namespace eca {

constexpr int kMostBlocks = 16;  // of a cluster

struct Device {
  const char* name;
  int capability;  // 90 for compute capability 9.0
  int multiprocessors;
  int max_threads;                    // of a block
  int threads_per_multiprocessor;     // resident at once
  int most_blocks;                    // of a cluster; 1 where there are no clusters
  int64_t shared_per_block;           // bytes, without opting in to more
  int64_t shared_per_multiprocessor;  // bytes
  int64_t shared_opt_in;              // bytes of a block, with opting in
  int64_t l2;                         // bytes
};

// The largest cluster of a compute capability; whether one fits depends on the kernel (has_room, cuda/device.h).
constexpr int most_blocks_of(int capability) {
  return capability < 90 ? 1 : capability == 90 || capability == 100 || capability == 103 ? kMostBlocks : 8;
}

// Describes the current GPU; false if there is none. Null in builds without CUDA, else set by cuda/register_cuda.cpp.
extern bool (*driver_device)(Device*);

}  // namespace eca
