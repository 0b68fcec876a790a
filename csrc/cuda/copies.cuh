// SPDX-License-Identifier: MIT
// L1. How slabs get from global into shared memory while the block works on others. Two loaders, which offer
//   start()                            before anything else, by all threads
//   load(stage, slab, slab_bytes, from, second, bytes)   begins a copy, by all threads; of nothing if from is null, and
//                                      unless second is null, of that, too, to slab_bytes behind
//   release()                          by all threads, then a barrier, before a load into a slab that they have used
//   wait()                             until what is not awaited through the slab itself has arrived
//   slab<T>(data, stride, stage, sample)   a view of it
#pragma once
#include <cuda_pipeline_primitives.h>

#include <cuda/ptx>
#include <type_traits>

#include "../plan/resident.h"
#include "block.cuh"
#include "maps.cuh"

namespace eca {

namespace ptx = cuda::ptx;

// Runs that follow each other in shared memory.
template <class T>
struct Slab : Runs<T, int> {
  static constexpr bool kArrives = true;
  template <int N>
  __device__ __forceinline__ Vector<T, N> load_last(int run, int i) const {
    return this->template load<N>(run, i);
  }
};

// A slab whose pieces of 2^shift bytes are on their way.
template <class T>
struct ArrivingSlab : Slab<T> {
  uint64_t* pieces;  // an mbarrier each
  int shift;
  uint32_t parity;
  mutable int arrived = 0;  // pieces that this thread has seen arrive

  __device__ __forceinline__ void await(int run, int i) const {
    const int piece = (run * this->stride + i) * static_cast<int>(sizeof(T)) >> shift;
    for (; arrived <= piece; ++arrived) {
      while (!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cta, pieces + arrived, parity)) {
      }
    }
  }
};

// Bulk copies: one thread asks for them, mbarriers count the bytes. Compute capability 9.0.
struct BulkLoader {
  uint64_t* barriers;  // kMaxPieces per stage
  int stages, shift;
  bool evict_first;

  __device__ void start() const {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < stages * kMaxPieces; ++i) ptx::mbarrier_init(barriers + i, 1);
  }
  __device__ void load(int stage, unsigned char* slab, int slab_bytes, const char* from, const char* second,
                       int bytes) const {
    if (threadIdx.x != 0 || !from) return;
    const int most = 1 << shift;
    uint64_t* barrier = barriers + stage * kMaxPieces;
    for (int at = 0; at < bytes; at += most, ++barrier) {
      const uint32_t piece = bytes - at < most ? bytes - at : most;
      ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, barrier,
                                     second ? 2 * piece : piece);
      copy(slab + at, from + at, piece, barrier);
      if (second) copy(slab + slab_bytes + at, second + at, piece, barrier);
    }
  }
  // Whatever threads have written to the slab comes before the copy that overwrites it.
  __device__ void release() const { ptx::fence_proxy_async(ptx::space_shared); }
  __device__ void wait() const {}
  template <class T>
  __device__ ArrivingSlab<T> slab(T* data, int stride, int stage, int sample) const {
    return {{{data, stride}}, barriers + stage * kMaxPieces, shift, static_cast<uint32_t>(sample / stages % 2)};
  }

 private:
  __device__ void copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) const {
#if defined(__CUDA_ARCH__)  // cuda::ptx::cp_async_bulk takes no hint
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(static_cast<uint32_t>(__cvta_generic_to_shared(barrier))),
        "l"(static_cast<uint64_t>(hint_of(evict_first)))
        : "memory");
#else
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, to, from, bytes, barrier);
#endif
  }
};

// 16 bytes per thread and step, which the thread itself waits for. Compute capability 8.0.
struct ThreadLoader {
  int stages;

  __device__ void start() const {}
  __device__ void load(int, unsigned char* slab, int slab_bytes, const char* from, const char* second,
                       int bytes) const {
    if (from) {
      for (int at = threadIdx.x * 16; at < bytes; at += blockDim.x * 16) {
        __pipeline_memcpy_async(slab + at, from + at, 16);
        if (second) __pipeline_memcpy_async(slab + slab_bytes + at, second + at, 16);
      }
    }
    __pipeline_commit();  // an empty group, too, so that the one to wait for is always the oldest of `stages`
  }
  __device__ void release() const {}
  __device__ void wait() const {
    static_assert(kMaxStages == 4);
    if (stages == 1) __pipeline_wait_prior(0);
    if (stages == 2) __pipeline_wait_prior(1);
    if (stages == 3) __pipeline_wait_prior(2);
    if (stages == 4) __pipeline_wait_prior(3);
    __syncthreads();
  }
  template <class T>
  __device__ Slab<T> slab(T* data, int stride, int, int) const {
    return {{data, stride}};
  }
};

}  // namespace eca
