// SPDX-License-Identifier: MIT
// L2. The resident kernels for float.
#include "resident_launch.cuh"

namespace eca {

template <>
cudaError_t launch_resident_of<DType::kFloat, ForwardCall>(const ResidentArgs<float, ForwardCall>& args,
                                                           cudaStream_t stream, Ask ask) {
  return launch_resident_as<float>(args, stream, ask);
}

template <>
cudaError_t launch_resident_of<DType::kFloat, BackwardCall>(const ResidentArgs<float, BackwardCall>& args,
                                                            cudaStream_t stream, Ask ask) {
  return launch_resident_as<float>(args, stream, ask);
}

int64_t count_clusters(int ranks, int threads, int shared_bytes) {
  Device device;
  if (query_device(&device) != cudaSuccess) return 0;
  ResidentPlan plan{};
  plan.copies = device.capability < 90 ? Copies::kThreads : Copies::kBulk;
  plan.ranks = ranks;
  plan.threads = threads;
  plan.shared.total = shared_bytes;
  plan.shared_limit = device.shared_opt_in;
  using Pass = ResidentForward<Instance<float, Layout::kPlanes, 4, false, Copies::kBulk>>;
  using Alone = ResidentForward<Instance<float, Layout::kPlanes, 4, false, Copies::kThreads>>;
  if (plan.copies == Copies::kBulk)
    return ClusterLaunch(reinterpret_cast<const void*>(&resident<Pass>), plan, nullptr).room;
  return ranks == 1 ? ClusterLaunch(reinterpret_cast<const void*>(&resident<Alone>), plan, nullptr).room : 0;
}

cudaError_t query_device_with_clusters(Device* device) {
  const cudaError_t error = query_device(device);
  if (error != cudaSuccess || device->capability < 90) return error;
  const int64_t shared[] = {device->shared_opt_in, device->shared_per_multiprocessor / 2 - kReserved};
  for (int room = 0; room < 2; ++room)
    for (int ranks = 1; ranks <= kMostRanks; ++ranks)
      device->clusters[room][ranks] =
          static_cast<int>(count_clusters(ranks, std::min(512, device->max_threads), static_cast<int>(shared[room])));
  return cudaSuccess;
}

}  // namespace eca
