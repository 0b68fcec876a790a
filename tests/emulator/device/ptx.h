// SPDX-License-Identifier: MIT
// The functions of csrc/cuda/ptx.cuh, whose inline assembly CUDA_EMULATOR leaves out.
#pragma once

#include "interface.h"

namespace eca::ptx {

// Accessing the word itself shows sanitizers who initializes and who waits.
inline void mbarrier_init(uint64_t* barrier, EMULATOR_HERE) {
  *barrier = 0;
  emulator::mbarrier_init(barrier, 1, where);
}
inline void fence_mbarrier_init() {}
inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes, EMULATOR_HERE) {
  emulator::mbarrier_arrive(barrier, 1, bytes, where);
}
inline void wait_for_copies(uint64_t* barrier, EMULATOR_HERE) {
  static_cast<void>(*static_cast<volatile uint64_t*>(barrier));
  emulator::mbarrier_wait(barrier, 0, where);
}
inline void wait_for_pushes(uint64_t* barrier, EMULATOR_HERE) { wait_for_copies(barrier, where); }

inline void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier, EMULATOR_HERE) {
  emulator::bulk_load(to, from, bytes, barrier, where);
}
inline bool has_bulk_copies(bool planned) { return planned; }
inline void load_16(void* to, const void* from, EMULATOR_HERE) { emulator::thread_load(to, from, 16, where); }
inline void commit_loads() { emulator::thread_load_commit(); }
template <int kLater>
void wait_for_loads(EMULATOR_HERE) {
  emulator::thread_load_wait(kLater, where);
}
inline uint4 load_once(const uint4* from) {
  emulator::count_load(sizeof *from);
  return *from;
}

inline void push(float* to, float value, int block, uint64_t* barrier, EMULATOR_HERE) {
  uint64_t* const there = static_cast<uint64_t*>(emulator::map_shared(barrier, block, where));
  static_cast<void>(*static_cast<volatile uint64_t*>(there));
  emulator::push(emulator::map_shared(to, block, where), &value, sizeof value, there, where);
}
inline void cluster_arrive(EMULATOR_HERE) { emulator::cluster_arrive(where); }
inline void cluster_wait(EMULATOR_HERE) { emulator::cluster_wait(where); }

// Emulated kernels run one after another.
inline void wait_for_previous_kernel() {}

}  // namespace eca::ptx
