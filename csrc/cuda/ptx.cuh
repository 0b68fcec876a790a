// SPDX-License-Identifier: MIT
// L1. All inline PTX: mbarriers, asynchronous copies, stores to distributed shared memory, cluster barriers.
//
// The emulator replaces these functions (tests/emulator/device/ptx.h): g++ never compiles this assembly. Below 9.0, or
// 8.0 for cp.async, instructions that do not exist trap; the launch plan never chooses kernels that reach them.
#pragma once
#ifndef CUDA_EMULATOR
#include <cuda_runtime.h>

#include <cstdint>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define ECA_SM90(...) __trap()
#else
#define ECA_SM90(...) asm volatile(__VA_ARGS__)
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define ECA_SM80(...) __trap()
#else
#define ECA_SM80(...) asm volatile(__VA_ARGS__)
#endif

namespace eca::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- mbarriers. Each is used once, so all waits are for phase 0, which one arrival and all expected bytes complete.

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier) {
  ECA_SM90("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// Makes initialised mbarriers visible to bulk copies and, by the next cluster barrier, to the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
  ECA_SM90("fence.mbarrier_init.release.cluster;" :: : "memory");
}
// The one arrival. Expects `bytes`, some of which may have arrived before.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {
  ECA_SM90("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
           "r"(bytes) : "memory");
}
#define ECA_WAIT(scope)                                                                      \
  do {                                                                                       \
    uint32_t done = 0;                                                                       \
    while (!done)                                                                            \
      ECA_SM90("{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire." scope                 \
               ".shared::cta.b64 p, [%1], 0;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(done) : "r"( \
                   shared_address(barrier)) : "memory");                                     \
  } while (false)
// For bulk copies of this block; for pushes by other blocks, which need acquire at cluster scope.
__device__ __forceinline__ void wait_for_copies(uint64_t* barrier) { ECA_WAIT("cta"); }
__device__ __forceinline__ void wait_for_pushes(uint64_t* barrier) { ECA_WAIT("cluster"); }
#undef ECA_WAIT

// --- Copies from global to shared memory, in multiples of 16 bytes

__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  ECA_SM90("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
               shared_address(to)),
           "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// Known at compile time on a GPU, where it equals `planned`; the emulator takes the latter.
__device__ __forceinline__ constexpr bool has_bulk_copies(bool planned) {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ >= 900;
#else
  return planned;
#endif
}
// An asynchronous copy of 16 bytes. Until a barrier, only this thread may read it.
__device__ __forceinline__ void load_16(void* to, const void* from) {
  ECA_SM80("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
           "l"(__cvta_generic_to_global(from)) : "memory");
}
__device__ __forceinline__ void commit_loads() { ECA_SM80("cp.async.commit_group;" :: : "memory"); }
// Waits for all of this thread's groups of copies but the last kLater.
template <int kLater>
__device__ __forceinline__ void wait_for_loads() {
  ECA_SM80("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

// 16 bytes of global memory that this kernel does not read again: they need no place in L1.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(from)));
  return v;
}

// --- Clusters

// Stores a number at the same place in another block's shared memory, and completes 4 bytes at its mbarrier.
__device__ __forceinline__ void push(float* to, float value, int block, uint64_t* barrier) {
  ECA_SM90(
      "{\n .reg .u32 a, b;\n mapa.shared::cluster.u32 a, %0, %3;\n mapa.shared::cluster.u32 b, %2, %3;\n"
      " st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [a], %1, [b];\n}" ::"r"(shared_address(to)),
      "r"(__float_as_uint(value)), "r"(shared_address(barrier)), "r"(block) : "memory");
}
// By all threads. Relaxed: only the initialisation of mbarriers is ordered, by fence_mbarrier_init.
__device__ __forceinline__ void cluster_arrive() { ECA_SM90("barrier.cluster.arrive.relaxed.aligned;" :: : "memory"); }
__device__ __forceinline__ void cluster_wait() { ECA_SM90("barrier.cluster.wait.acquire.aligned;" :: : "memory"); }

// --- Grids

// With programmatic dependent launch: waits until the previous kernel has ended and its stores are visible.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace eca::ptx

#undef ECA_SM90
#undef ECA_SM80
#endif
