// SPDX-License-Identifier: MIT
// L2. Picks the instance of the resident kernel that a plan asks for. Included by one file per dtype.
#pragma once
#include <algorithm>
#include <utility>

#include "device.h"
#include "launch.cuh"
#include "resident.cuh"
#include "resident.h"

namespace eca {

template <class Call>
struct ResidentPassOf;
template <>
struct ResidentPassOf<ForwardCall> {
  template <class T, Layout L, int N>
  using type = ResidentForward<T, L, N>;
};
template <>
struct ResidentPassOf<BackwardCall> {
  template <class T, Layout L, int N>
  using type = ResidentBackward<T, L, N>;
};

// Attributes belong to the kernel, not to the launch, and other threads may launch it with other plans: so each is set
// to the one value that serves all.
template <class Args>
cudaError_t launch_clusters(void (*kernel)(Args), const Args& args, cudaStream_t stream) {
  const ResidentPlan& plan = args.plan;
  const std::pair<cudaFuncAttribute, int> attributes[] = {
      {cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared_limit)},
      {cudaFuncAttributePreferredSharedMemoryCarveout, 100},
      {cudaFuncAttributeNonPortableClusterSizeAllowed, 1}};
  for (const auto& [attribute, value] : attributes) {
    if (cudaFuncSetAttribute(kernel, attribute, value) != cudaSuccess) return cudaErrorInvalidClusterSize;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.ranks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(plan.shared.total);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const int64_t room = resident_clusters(reinterpret_cast<const void*>(kernel), config, plan.ranks);
  if (room < 1) return cudaErrorInvalidClusterSize;
  config.gridDim = dim3(static_cast<unsigned>(std::min(plan.clusters, room) * plan.ranks));
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <class T, Layout L, class Call>
cudaError_t launch_resident_in(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  return with_width<T>(args.plan.vector, [&](auto width) {
    using Pass = typename ResidentPassOf<Call>::template type<T, L, decltype(width)::value>;
    return launch_clusters(resident<Pass>, args, stream);
  });
}

template <class T, class Call>
cudaError_t launch_resident_as(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  return args.problem.layout == Layout::kPlanes ? launch_resident_in<T, Layout::kPlanes>(args, stream)
                                                : launch_resident_in<T, Layout::kRows>(args, stream);
}

}  // namespace eca
