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
  template <class T, Layout L, int N>
  using type = ResidentForward<T, L, N>;
};
template <>
struct ResidentPassOf<BackwardCall> {
  template <class T, Layout L, int N>
  using type = ResidentBackward<T, L, N>;
};

// More shared memory and larger clusters than every kernel may have must be asked for, once per kernel and device; to
// ask again costs little, and to remember would need a lock.
template <class Args>
cudaError_t launch_clusters(void (*kernel)(Args), const Args& args, cudaStream_t stream) {
  const ResidentPlan& plan = args.plan;
  const int bytes = static_cast<int>(plan.shared.total);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && plan.ranks > 8)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.ranks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.clusters * plan.ranks));
  config.blockDim = dim3(static_cast<unsigned>(plan.threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int room = 0;
  error = resident_clusters(reinterpret_cast<const void*>(kernel), config, plan.ranks, &room);
  if (error != cudaSuccess) return error;
  if (room < 1) return cudaErrorInvalidClusterSize;
  config.gridDim.x = static_cast<unsigned>(std::min<int64_t>(plan.clusters, room) * plan.ranks);
  return cudaLaunchKernelEx(&config, kernel, args);
}

template <class T, Layout L, class Call>
cudaError_t launch_resident_in(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  constexpr int kWidest = 16 / sizeof(T), kMiddle = sizeof(T) == 2 ? 4 : 1;  // widths_of in plan/plan.cpp
  using Of = ResidentPassOf<Call>;
  if (args.plan.vector == kWidest)
    return launch_clusters(resident<typename Of::template type<T, L, kWidest>>, args, stream);
  if (args.plan.vector == kMiddle)
    return launch_clusters(resident<typename Of::template type<T, L, kMiddle>>, args, stream);
  return launch_clusters(resident<typename Of::template type<T, L, 1>>, args, stream);
}

template <class T, class Call>
cudaError_t launch_resident_as(const ResidentArgs<float, Call>& args, cudaStream_t stream) {
  return args.problem.layout == Layout::kPlanes ? launch_resident_in<T, Layout::kPlanes>(args, stream)
                                                : launch_resident_in<T, Layout::kRows>(args, stream);
}

}  // namespace eca
