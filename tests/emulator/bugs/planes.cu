// SPDX-License-Identifier: MIT
// A cluster keeps an image in its blocks' dynamic shared memory; blocks read the halo of means from each other's.
#include "device.cuh"

#include <cooperative_groups.h>

namespace bugs {

namespace cg = cooperative_groups;

__global__ void __launch_bounds__(kThreads)
    planes_kernel(const float* __restrict__ x, const float* __restrict__ w, float* __restrict__ y, int channels,
                  int pixels, int taps, Bug bug) {
  const auto cluster = cg::this_cluster();
  const int rank = cluster.block_rank(), ranks = cluster.num_blocks();
  const int own = channels / ranks, halo = taps / 2;
  float* const means = dynamic_shared<float>();  // own, with a halo on both sides
  float* const planes = means + own + 2 * halo;
  const size_t offset = (size_t(blockIdx.y) * channels + size_t(rank) * own) * pixels;

  for (int i = threadIdx.x; i < own * pixels; i += blockDim.x) planes[i] = x[offset + i];  // [staging]
  if (bug != Bug::no_barrier_after_staging) __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int c = warp; c < own; c += warps) {
    float sum = 0;
    for (int i = lane; i < pixels; i += 32) sum += planes[c * pixels + i];  // [staged]
    sum = warp_sum(sum);
    if (lane == 0) means[halo + c] = sum / pixels;
  }
  if (bug == Bug::no_first_cluster_sync)
    __syncthreads();
  else if (bug != Bug::block_skips_cluster_sync || rank != 0)
    cluster.sync();  // [first]

  const int reach = halo + (bug == Bug::halo_too_wide ? 1 : 0);
  for (int i = threadIdx.x; i < 2 * reach; i += blockDim.x) {
    const int c = i < reach ? i - reach : own + i - reach;  // relative to the first channel of the block
    const int global = rank * own + c;
    float mean = 0;
    if (global >= 0 && global < channels) {
      const float* const peer = cluster.map_shared_rank(means, global / own);
      mean = peer[halo + global % own];  // [peer]
    }
    means[halo + c] = mean;  // [halo]
  }
  if (bug == Bug::no_last_cluster_sync)
    __syncthreads();  // the block goes on alone and may exit first
  else
    cluster.sync();  // [last]
  for (int i = threadIdx.x; i < own * pixels; i += blockDim.x) {
    float z = 0;
    for (int k = 0; k < taps; ++k) z += w[bug == Bug::weights_overrun ? k + 1 : k] * means[i / pixels + k];  // [weight]
    y[offset + i] = planes[i] / (1 + expf(-z));
  }
  if (bug == Bug::dynamic_shared_overrun && threadIdx.x == 0) planes[own * pixels] = 0;  // [overrun]
}

cudaError_t planes(const float* x, const float* w, float* y, int images, int channels, int pixels, int taps, Bug bug) {
  const int own = channels / 4, halo = bug == Bug::no_room_for_halo ? 0 : taps / 2;
  const size_t bytes = (own + 2 * halo + own * pixels) * sizeof(float);
  return launch(planes_kernel, dim3(4, images), 4, bytes, x, w, y, channels, pixels, taps, bug);
}

}  // namespace bugs
