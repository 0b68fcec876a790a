// SPDX-License-Identifier: MIT
// L2. Picks the instance of the one-pass kernel that a call needs. Included by one file per gate, which so compile side
// by side.
#pragma once
#include "device.h"
#include "launch.cuh"
#include "one_pass.cuh"

namespace eca {

template <Variant V, class T, Walk W, bool kNorm, class Call>
void (*kernel_of())(OnePassArgs<Call>) {
  using Gate = GateOf<V, float>;
  if constexpr (kNorm) {
    return &eca_norm_forward_kernel<Gate, T, W>;
  } else if constexpr (std::is_same_v<Call, ForwardCall>) {
    return &eca_forward_kernel<Gate, T, W>;
  } else {
    return &eca_backward_kernel<Gate, T, W>;
  }
}

template <Variant V, class T, bool kNorm, class Call>
auto kernel_for(const OnePassArgs<Call>& args) {
  if (args.problem.layout == Layout::kRows) return kernel_of<V, T, Walk::kRows, kNorm, Call>();
  return args.plan.straddle ? kernel_of<V, T, Walk::kStraddling, kNorm, Call>()
                            : kernel_of<V, T, Walk::kPlanes, kNorm, Call>();
}

template <Variant V, bool kNorm, class Call>
cudaError_t launch_one_pass_of(const OnePassArgs<Call>& args, int threads, cudaStream_t stream, Ask ask) {
  const DType dtype = args.problem.dtype;
  const auto kernel = dtype == DType::kHalf       ? kernel_for<V, __half, kNorm>(args)
                      : dtype == DType::kBFloat16 ? kernel_for<V, __nv_bfloat16, kNorm>(args)
                                                  : kernel_for<V, float, kNorm>(args);
  const OnePassPlan& plan = args.plan;
  LaunchConfig launch(dim3(static_cast<unsigned>(args.problem.n * plan.blocks)), threads, plan.shared.total, stream);
  if (plan.blocks > 1) launch.set_cluster(plan.blocks);
  if (ask == Ask::kLaunch) return launch.launch(kernel, args);
  const int capability = plan.bulk || plan.blocks > 1 ? 90 : 80;  // of the instructions in ptx.cuh that it takes
  const bool room = has_room(reinterpret_cast<const void*>(kernel), launch.config, capability);
  return room ? cudaSuccess : cudaErrorInvalidClusterSize;
}

}  // namespace eca
