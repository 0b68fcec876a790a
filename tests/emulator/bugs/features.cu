// SPDX-License-Identifier: MIT
// Uses each function that the other kernels do not; main.cpp checks the results.
#include "device.cuh"

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline_primitives.h>

#include <cassert>

namespace bugs {

namespace cg = cooperative_groups;

struct Table {
  unsigned values[4];
};

__global__ void __launch_bounds__(kThreads) features_kernel(const unsigned* __restrict__ x, unsigned* __restrict__ y,
                                                            unsigned* sum, const __grid_constant__ Table table) {
  __shared__ unsigned shared[kFeatureThreads];
  const unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  assert(t == cg::this_thread_block().thread_rank() && t < kFeatureThreads);
  shared[t] = __ldcs(x + t);
  __syncthreads();
  const unsigned v = shared[kFeatureThreads - 1 - t];

  // The second warp has 16 lanes, and takes part with those it has.
  const unsigned even = __ballot_sync(~0u, v % 2 == 0);
  unsigned votes = __popc(even) + 100 * __any_sync(~0u, t == 33) + 1000 * __all_sync(~0u, t < kFeatureThreads);
  votes += 10000 * __syncthreads_count(t % 3 == 0) + 1000000 * __syncthreads_or(t == 7);
  votes += 2000000 * __syncthreads_and(t != 7);
  unsigned moved = __shfl_down_sync(~0u, t, 1, 4) + 1000 * __shfl_up_sync(~0u, t, 2, 8);
  moved += 1000000 * __shfl_sync(~0u, t, 5, 8);
  unsigned reduced = 0;
  if (t < 16) {
    reduced = __reduce_add_sync(0xffffu, t) + 1000 * __reduce_max_sync(0xffffu, t);
    reduced += 100000 * __reduce_min_sync(0xffffu, t + 3) + 1000000 * (__reduce_xor_sync(0xffffu, 1u << t) == 0xffffu);
  }
  unsigned numbers = min(int(t), 20) + 100 * max(t, 40u) + 10000 * __umulhi(1u << 31, t);
  numbers += 1000000 * unsigned(max(0.f, fminf(rsqrtf(0.25f), __ldg(&x[0]) + 9.f)));
  numbers += 10000000 * unsigned(float(__float2half(1.5f) + __half(0.5f)) * float(__float2bfloat16(1.f)));

  // Two groups of copies, awaited one after the other; from the second, another thread's copy is read.
  __shared__ unsigned copied[2][kFeatureThreads];
  for (unsigned group = 0; group < 2; ++group) {
    __pipeline_memcpy_async(&copied[group][t], x + (t + group) % kFeatureThreads, sizeof(unsigned));
    __pipeline_commit();
  }
  __pipeline_wait_prior(1);
  unsigned copies = copied[0][t];
  __pipeline_wait_prior(0);
  __syncthreads();
  copies += 1000 * copied[1][kFeatureThreads - 1 - t];

  const auto cluster = cg::this_cluster();
  auto token = cluster.barrier_arrive();
  atomicAdd(sum, table.values[t % 4]);
  cluster.barrier_wait(std::move(token));

  unsigned* const out = y + (t + kFeatureThreads * (blockIdx.x + gridDim.x * blockIdx.y)) * kFeatures;
  __stcs(&out[0], v);
  __stcg(&out[1], votes);
  __stwt(&out[2], moved);
  out[3] = reduced;
  out[4] = numbers;
  out[5] = cluster.block_rank();
  out[6] = copies;
}

__global__ void empty_kernel() {}

cudaError_t features(const unsigned* x, unsigned* y, unsigned* sum) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {2, 2, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(4, 2);
  config.blockDim = dim3(4, 4, 3);
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, features_kernel, x, y, sum, Table{{1, 2, 3, 4}});
}

namespace {
cudaLaunchConfig_t configuration(int blocks, int threads, size_t dynamic_bytes, int cluster,
                                 cudaLaunchAttribute& attribute) {
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = dynamic_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return config;
}
}  // namespace

cudaError_t empty(int blocks, int threads, size_t dynamic_bytes, int cluster) {
  cudaLaunchAttribute attribute{};
  const auto config = configuration(blocks, threads, dynamic_bytes, cluster, attribute);
  return cudaLaunchKernelEx(&config, empty_kernel);
}
cudaError_t allow_dynamic(size_t bytes) {
  return cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
}
cudaError_t most_clusters(int* clusters, int cluster) {
  cudaLaunchAttribute attribute{};
  const auto config = configuration(cluster, kThreads, 0, cluster, attribute);
  return cudaOccupancyMaxActiveClusters(clusters, empty_kernel, &config);
}

}  // namespace bugs
