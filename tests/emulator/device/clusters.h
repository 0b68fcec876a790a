// SPDX-License-Identifier: MIT
// Blocks and clusters of cooperative_groups, whose header declares nothing for host compilers.
#pragma once

#include "interface.h"

namespace cooperative_groups {

struct thread_block {
  static void sync(EMULATOR_HERE) { emulator::syncthreads(false, where); }
  static unsigned thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return blockIdx; }
  static dim3 thread_index() { return threadIdx; }
};
inline thread_block this_thread_block() { return {}; }

struct cluster_group {
  struct arrival_token {};
  static void sync(EMULATOR_HERE) {
    emulator::cluster_arrive(where);
    emulator::cluster_wait(where);
  }
  static arrival_token barrier_arrive(EMULATOR_HERE) {
    emulator::cluster_arrive(where);
    return {};
  }
  static void barrier_wait(EMULATOR_HERE) { emulator::cluster_wait(where); }
  static void barrier_wait(arrival_token&&, EMULATOR_HERE) { emulator::cluster_wait(where); }
  static unsigned block_rank() { return emulator::cluster_rank(); }
  static unsigned num_blocks() { return emulator::cluster_size(); }
  static unsigned thread_rank() { return block_rank() * thread_block::num_threads() + thread_block::thread_rank(); }
  static unsigned num_threads() { return num_blocks() * thread_block::num_threads(); }
  template <typename T>
  static T* map_shared_rank(T* address, int rank, EMULATOR_HERE) {
    return static_cast<T*>(emulator::map_shared(address, rank, where));
  }
};
inline cluster_group this_cluster() { return {}; }

}  // namespace cooperative_groups
