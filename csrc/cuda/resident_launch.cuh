// SPDX-License-Identifier: MIT
// L2. Picks the instance of the resident kernel that a plan asks for. Included by one file per dtype.
#pragma once
#include <algorithm>

#include "device.h"
#include "launch.cuh"
#include "resident.cuh"
#include "resident.h"

namespace eca {

template <class Call>
struct ResidentPassOf;
template <>
struct ResidentPassOf<ForwardCall> {
  template <class I>
  using type = ResidentForward<I>;
};
template <>
struct ResidentPassOf<BackwardCall> {
  template <class I>
  using type = ResidentBackward<I>;
};

// A launch, and how many clusters run at once: 0 if none can.
struct ClusterLaunch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  int64_t room;

  ClusterLaunch(const void* kernel, const ResidentPlan& plan, cudaStream_t stream) {
    const bool bulk = plan.copies == Copies::kBulk;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(plan.ranks), 1, 1};
    config.gridDim = dim3(static_cast<unsigned>(plan.ranks));
    config.blockDim = dim3(static_cast<unsigned>(plan.threads));
    config.dynamicSmemBytes = static_cast<size_t>(plan.shared.total);
    config.stream = stream;
    config.attrs = bulk ? &attribute : nullptr;
    config.numAttrs = bulk ? 1 : 0;
    room = resident_clusters(kernel, config, plan.ranks, static_cast<int>(plan.shared_limit));
  }
  ClusterLaunch(const ClusterLaunch&) = delete;  // config points to attribute
};

template <class Args>
cudaError_t launch_clusters(void (*kernel)(Args), const Args& args, cudaStream_t stream, Ask ask) {
  ClusterLaunch launch(reinterpret_cast<const void*>(kernel), args.plan, stream);
  if (launch.room < 1) return cudaErrorInvalidClusterSize;
  if (ask == Ask::kRoom) return cudaSuccess;
  Args there = args;
  if (args.plan.persistent) there.plan.clusters = std::min(args.plan.clusters, launch.room);
  launch.config.gridDim = dim3(static_cast<unsigned>(there.plan.clusters * args.plan.ranks));
  return cudaLaunchKernelEx(&launch.config, kernel, there);
}

template <class T, Layout L, int N, bool kStraddle, class Call>
cudaError_t launch_resident_in(const ResidentArgs<float, Call>& args, cudaStream_t stream, Ask ask) {
  using Bulk = typename ResidentPassOf<Call>::template type<Instance<T, L, N, kStraddle, Copies::kBulk>>;
  using Threads = typename ResidentPassOf<Call>::template type<Instance<T, L, N, kStraddle, Copies::kThreads>>;
  return args.plan.copies == Copies::kBulk ? launch_clusters(resident<Bulk>, args, stream, ask)
                                           : launch_clusters(resident<Threads>, args, stream, ask);
}

template <class T, class Call>
cudaError_t launch_resident_as(const ResidentArgs<float, Call>& args, cudaStream_t stream, Ask ask) {
  constexpr int kWidest = 16 / sizeof(T);
  if (args.problem.layout == Layout::kRows) {
    return with_width<T>(args.plan.vector, [&](auto width) {
      return launch_resident_in<T, Layout::kRows, decltype(width)::value, false>(args, stream, ask);
    });
  }
  return args.plan.straddle ? launch_resident_in<T, Layout::kPlanes, kWidest, true>(args, stream, ask)
                            : launch_resident_in<T, Layout::kPlanes, kWidest, false>(args, stream, ask);
}

}  // namespace eca
