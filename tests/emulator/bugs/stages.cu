// SPDX-License-Identifier: MIT
// A block processes tiles, two of them in flight, by bulk loads and bulk stores.
#include "device.cuh"

#include <cuda/ptx>

namespace bugs {

namespace ptx = cuda::ptx;

__global__ void __launch_bounds__(kThreads)
    stages_kernel(const float* __restrict__ x, float* __restrict__ y, int tiles, int tile, Bug bug) {
  __shared__ uint64_t arrived[2];
  float* const stages = dynamic_shared<float>();
  const auto load = [&](int t, int stage) {
    ptx::mbarrier_arrive_expect_tx(ptx::sem_release, ptx::scope_cta, ptx::space_shared, &arrived[stage],
                                   tile * 4 + (bug == Bug::expects_too_much ? 16 : 0));
    ptx::cp_async_bulk(ptx::space_cluster, ptx::space_global, stages + stage * tile, x + size_t(t) * tile, tile * 4,
                       &arrived[stage]);
  };
  if (threadIdx.x == 0) {
    for (auto& barrier : arrived) ptx::mbarrier_init(&barrier, 1);  // [init]
    ptx::fence_mbarrier_init(ptx::sem_release, ptx::scope_cluster);
  }
  if (bug != Bug::no_barrier_after_init) __syncthreads();
  if (threadIdx.x == 0 && int(blockIdx.x) < tiles) load(blockIdx.x, 0);
  int round = 0;
  for (int t = blockIdx.x; t < tiles; t += gridDim.x, ++round) {
    const int stage = round & 1, next = t + gridDim.x;
    if (threadIdx.x == 0 && next < tiles) {
      if (bug != Bug::stage_overwritten) ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>{});  // of the tile before
      load(next, stage ^ 1);
    }
    const int parity = (bug == Bug::wrong_parity ? round : round >> 1) & 1;
    if (bug != Bug::load_not_awaited)
      while (!ptx::mbarrier_try_wait_parity(&arrived[stage], parity)) {  // [await]
      }
    for (int i = threadIdx.x; i < tile; i += blockDim.x) stages[stage * tile + i] *= 2;  // [twice]
    if (bug != Bug::no_proxy_fence) ptx::fence_proxy_async(ptx::space_shared);
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::cp_async_bulk(ptx::space_global, ptx::space_shared, y + size_t(t) * tile, stages + stage * tile, tile * 4);
      ptx::cp_async_bulk_commit_group();
    }
  }
  if (bug != Bug::exit_before_stored && threadIdx.x == 0) ptx::cp_async_bulk_wait_group_read(ptx::n32_t<0>{});
}

cudaError_t stages(const float* x, float* y, int tiles, int tile, Bug bug) {
  return launch(stages_kernel, 3, 1, 2 * tile * sizeof(float), x, y, tiles, tile, bug);
}

}  // namespace bugs
