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

// Attributes belong to the kernel, not to the launch, and other threads may launch it with other plans: so each is set
// to the one value that serves all.
template <class Args>
cudaError_t launch_clusters(void (*kernel)(Args), const Args& args, cudaStream_t stream) {
  const ResidentPlan& plan = args.plan;
  const bool bulk = plan.copies == Copies::kBulk;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(kernel, attribute, value) == cudaSuccess;
  };
  if (!set(cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_limit)) ||
      !set(cudaFuncAttributePreferredSharedMemoryCarveout, 100) ||
      (bulk && !set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1)))
    return cudaErrorInvalidClusterSize;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.ranks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared.total);
  config.stream = stream;
  config.attrs = bulk ? &cluster : nullptr;
  config.numAttrs = bulk ? 1 : 0;
  const int64_t room = resident_clusters(reinterpret_cast<const void*>(kernel), config, plan.ranks);
  if (room < 1) return cudaErrorInvalidClusterSize;
  Args there = args;
  there.plan.clusters = std::min(plan.clusters, room);
  config.gridDim = dim3(static_cast<unsigned>(there.plan.clusters * plan.ranks));
  return cudaLaunchKernelEx(&config, kernel, there);
}

template <class T, Layout L, int N, bool kStraddle, class Call>
cudaError_t launch_resident_in(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  using Bulk = typename ResidentPassOf<Call>::template type<Instance<T, L, N, kStraddle, Copies::kBulk>>;
  using Threads = typename ResidentPassOf<Call>::template type<Instance<T, L, N, kStraddle, Copies::kThreads>>;
  return args.plan.copies == Copies::kBulk ? launch_clusters(resident<Bulk>, args, stream)
                                           : launch_clusters(resident<Threads>, args, stream);
}

template <class T, class Call>
cudaError_t launch_resident_as(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  constexpr int kWidest = 16 / sizeof(T);
  if (args.problem.layout == Layout::kRows) {
    return with_width<T>(args.plan.vector, [&](auto width) {
      return launch_resident_in<T, Layout::kRows, decltype(width)::value, false>(args, stream);
    });
  }
  return args.plan.straddle ? launch_resident_in<T, Layout::kPlanes, kWidest, true>(args, stream)
                            : launch_resident_in<T, Layout::kPlanes, kWidest, false>(args, stream);
}

}  // namespace eca
