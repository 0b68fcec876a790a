// SPDX-License-Identifier: MIT
// L2. The launch of the resident kernel.
#pragma once
#include <cuda_runtime.h>

#include "resident_args.h"

namespace eca {

// Only whether the device has room for one cluster, or the launch.
enum class Ask { kRoom, kLaunch };

// resident_<dtype>.cu holds one of these each, for both kinds of call. cudaErrorInvalidClusterSize, with nothing
// launched, where the device has no room for a cluster of that size.
template <DType D, class Call>
cudaError_t launch_resident_of(const ResidentArgs<float, Call>& args, cudaStream_t stream, Ask ask);

// How many clusters of this kind run at once on the current device, as the driver says; 0: none can.
int64_t count_clusters(int ranks, int threads, int shared_bytes);

// What query_device says, and how many clusters run at once.
cudaError_t query_device_with_clusters(Device* device);

template <class Call>
cudaError_t launch_resident(const ResidentArgs<float, Call>& args, cudaStream_t stream, Ask ask) {
  switch (args.problem.dtype) {
    case DType::kHalf:
      return launch_resident_of<DType::kHalf, Call>(args, stream, ask);
    case DType::kBFloat16:
      return launch_resident_of<DType::kBFloat16, Call>(args, stream, ask);
    default:
      return launch_resident_of<DType::kFloat, Call>(args, stream, ask);
  }
}

}  // namespace eca
