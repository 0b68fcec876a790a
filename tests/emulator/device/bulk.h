// SPDX-License-Identifier: MIT
// mbarriers, bulk copies, st.async and cluster barriers of cuda::ptx, which libcu++ omits for host compilers.
#pragma once

#include "interface.h"

#include <cuda/ptx>

namespace cuda::ptx {

// Accessing the word itself shows sanitizers who initializes and who waits.
inline void mbarrier_init(uint64_t* barrier, uint32_t count, EMULATOR_HERE) {
  *barrier = 0;
  emulator::mbarrier_init(barrier, count, where);
}
inline void fence_mbarrier_init(sem_release_t, scope_cluster_t) {}

template <dot_scope S>
uint64_t mbarrier_arrive(sem_release_t, scope_t<S>, space_shared_t, uint64_t* barrier, EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, 1, 0, where);
}
template <dot_scope S>
uint64_t mbarrier_arrive(sem_release_t, scope_t<S>, space_shared_t, uint64_t* barrier, uint32_t count, EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, count, 0, where);
}
template <dot_scope S>
void mbarrier_arrive(sem_release_t, scope_t<S>, space_cluster_t, uint64_t* barrier, EMULATOR_HERE) {
  emulator::mbarrier_arrive(barrier, 1, 0, where);
}
template <dot_scope S>
uint64_t mbarrier_arrive_expect_tx(sem_release_t, scope_t<S>, space_shared_t, uint64_t* barrier, uint32_t bytes,
                                   EMULATOR_HERE) {
  return emulator::mbarrier_arrive(barrier, 1, bytes, where);
}

// The try_ forms wait until the phase ends; the test_ forms poll.
inline bool mbarrier_try_wait(uint64_t* barrier, uint64_t state, EMULATOR_HERE) {
  static_cast<void>(*static_cast<volatile uint64_t*>(barrier));
  return emulator::mbarrier_wait(barrier, state & 1, where);
}
inline bool mbarrier_try_wait_parity(uint64_t* barrier, uint32_t parity, EMULATOR_HERE) {
  static_cast<void>(*static_cast<volatile uint64_t*>(barrier));
  return emulator::mbarrier_wait(barrier, parity & 1, where);
}
inline bool mbarrier_test_wait(uint64_t* barrier, uint64_t state, EMULATOR_HERE) {
  static_cast<void>(*static_cast<volatile uint64_t*>(barrier));
  return emulator::mbarrier_test(barrier, state & 1, where);
}
inline bool mbarrier_test_wait_parity(uint64_t* barrier, uint32_t parity, EMULATOR_HERE) {
  static_cast<void>(*static_cast<volatile uint64_t*>(barrier));
  return emulator::mbarrier_test(barrier, parity & 1, where);
}

template <dot_scope S>
bool mbarrier_try_wait_parity(sem_acquire_t, scope_t<S>, uint64_t* barrier, uint32_t parity, EMULATOR_HERE) {
  return mbarrier_try_wait_parity(barrier, parity, where);
}

// Addresses are results of map_shared_rank.
template <typename T>
void st_async(T* address, const T& value, uint64_t* remote_barrier, EMULATOR_HERE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  static_cast<void>(*static_cast<volatile uint64_t*>(remote_barrier));
  emulator::push(address, &value, sizeof value, remote_barrier, where);
}

// Stronger than on a GPU: the relaxed arrival orders as the release one does.
inline void barrier_cluster_arrive(sem_relaxed_t, EMULATOR_HERE) { emulator::cluster_arrive(where); }
inline void barrier_cluster_arrive(sem_release_t, EMULATOR_HERE) { emulator::cluster_arrive(where); }
inline void barrier_cluster_wait(sem_acquire_t, EMULATOR_HERE) { emulator::cluster_wait(where); }

inline void fence_proxy_async() { emulator::fence_proxy_async(); }
template <dot_space S>
void fence_proxy_async(space_t<S>) {
  emulator::fence_proxy_async();
}

inline void cp_async_bulk(space_cluster_t, space_global_t, void* destination, const void* source, uint32_t bytes,
                          uint64_t* barrier, EMULATOR_HERE) {
  emulator::bulk_load(destination, source, bytes, barrier, where);
}
inline void cp_async_bulk(space_cluster_t, space_shared_t, void* destination, const void* source, uint32_t bytes,
                          uint64_t* barrier, EMULATOR_HERE) {
  emulator::bulk_load(destination, source, bytes, barrier, where);
}
inline void cp_async_bulk(space_global_t, space_shared_t, void* destination, const void* source, uint32_t bytes,
                          EMULATOR_HERE) {
  emulator::bulk_store(destination, source, bytes, where);
}
inline void cp_async_bulk_commit_group() { emulator::bulk_commit(); }
template <int N>
void cp_async_bulk_wait_group(n32_t<N>, EMULATOR_HERE) {
  emulator::bulk_wait(N, where);
}
template <int N>
void cp_async_bulk_wait_group_read(n32_t<N>, EMULATOR_HERE) {
  emulator::bulk_wait(N, where);
}

}  // namespace cuda::ptx
