// SPDX-License-Identifier: MIT
// Small kernels, correct unless told to have a bug: the emulator must report each bug, and nothing for `none`.
#pragma once

#include <cuda_runtime_api.h>

// clang-format off
#define BUGS(X) \
  X(none) \
  /* rows */ \
  X(no_barrier_after_write) X(no_barrier_before_reuse) X(barrier_in_one_warp) X(static_shared_index) \
  X(lanes_leave_shuffle) X(read_past_row) X(misaligned_vector) X(lockstep) \
  X(stack_overrun) X(uninitialized_shared) X(shuffle_as_barrier) \
  /* planes */ \
  X(no_barrier_after_staging) X(no_last_cluster_sync) X(no_room_for_halo) X(halo_too_wide) \
  X(dynamic_shared_overrun) X(no_first_cluster_sync) X(block_skips_cluster_sync) X(weights_overrun) \
  /* total */ \
  X(no_fence_before_count) X(no_fence_after_count) X(relaxed_count) X(all_blocks_write) \
  /* stages */ \
  X(no_barrier_after_init) X(load_not_awaited) X(no_proxy_fence) X(stage_overwritten) \
  X(exit_before_stored) X(expects_too_much) X(wrong_parity) \
  /* copies */ \
  X(copy_not_awaited) X(copies_of_others) X(copied_over) X(copy_of_12_bytes) X(copy_not_committed) \
  /* tickets, chain */ \
  X(flag_never_raised) X(relaxed_flag) X(relaxed_poll) X(plain_flag) \
  X(waits_for_later_block)
// clang-format on

namespace bugs {

enum class Bug : int {
#define BUGS_NAME(name) name,
  BUGS(BUGS_NAME)
#undef BUGS_NAME
};

constexpr int kThreads = 64;

// y[r] = the sum of x[r, :]
cudaError_t rows(const float* x, float* y, int rows, int columns, Bug);
// y = x * sigmoid(the channels' means, convolved with w): a cluster of 4 blocks for each image
cudaError_t planes(const float* x, const float* w, float* y, int images, int channels, int pixels, int taps, Bug);
// *total = the sum of x; `fences`: by __threadfence and atomicAdd, or by cuda::atomic_ref
cudaError_t total(const float* x, float* total, float* partial, unsigned* counter, int size, int blocks, bool fences,
                  Bug);
// y = 2 x, staged through shared memory by bulk copies
cudaError_t stages(const float* x, float* y, int tiles, int tile, Bug);
// y = 2 x, staged through shared memory by copies that each thread waits for itself; tiles of 4 * kThreads numbers
cudaError_t copies(const float* x, float* y, int tiles, Bug);
// y = x - mean(x), by persistent blocks that take tickets and wait for each other's flags
cudaError_t tickets(const float* x, float* y, float* partial, unsigned* counters, int items, int item, int blocks, Bug);
// y[i] = 1 + y[i - 1], one element per block
cudaError_t chain(unsigned* y, unsigned* counters, int blocks, Bug);
// Writes kFeatures words for each of 8 blocks x 48 threads: shuffles, votes, reductions, arithmetic, clusters,
// copies
constexpr int kFeatures = 7, kFeatureThreads = 48;
cudaError_t features(const unsigned* x, unsigned* y, unsigned* sum);
// An empty kernel, to test launches.
cudaError_t empty(int blocks, int threads, size_t dynamic_bytes, int cluster);
cudaError_t allow_dynamic(size_t bytes);
cudaError_t most_clusters(int* clusters, int cluster);

}  // namespace bugs
