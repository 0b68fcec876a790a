// SPDX-License-Identifier: MIT
// L2. Picks the instance of the one-pass kernel that a call needs. Included by one file per dtype, so that they compile
// side by side.
#pragma once
#include "../gates/registry.h"
#include "device.h"
#include "launch.cuh"
#include "one_pass.cuh"

namespace eca {

template <class Call>
using OnePassKernel = void (*)(OnePassArgs<Call>);

template <class Gate, class T, Walk W, class Call>
OnePassKernel<Call> kernel_of(bool norm) {
  if constexpr (std::is_same_v<Call, BackwardCall>) {
    return &eca_backward_kernel<Gate, T, W>;
  } else {
    if constexpr (std::is_same_v<Gate, GateOf<kEca, float>>) {
      if (norm) return &eca_norm_forward_kernel<Gate, T, W>;
    }
    return &eca_forward_kernel<Gate, T, W>;
  }
}

template <class T, int V = 0, class Call>
OnePassKernel<Call> kernel_for(const OnePassArgs<Call>& args) {
  if constexpr (V + 1 < kVariants) {
    if (args.problem.variant != static_cast<Variant>(V)) return kernel_for<T, V + 1>(args);
  }
  using Gate = GateOf<static_cast<Variant>(V), float>;
  const bool norm = args.gate.norm.var.data != nullptr;
  if (args.problem.layout == Layout::kRows) return kernel_of<Gate, T, Walk::kRows, Call>(norm);
  return args.plan.straddle ? kernel_of<Gate, T, Walk::kStraddling, Call>(norm)
                            : kernel_of<Gate, T, Walk::kPlanes, Call>(norm);
}

template <DType D, class Call>
cudaError_t launch_one_pass_of(const OnePassArgs<Call>& args, int threads, cudaStream_t stream, Ask ask) {
  const auto kernel = kernel_for<typename TypeOf<D>::type>(args);
  const OnePassPlan& plan = args.plan;
  LaunchConfig launch(dim3(static_cast<unsigned>(args.problem.n * plan.blocks)), threads, plan.shared.total, stream);
  if (plan.blocks > 1) launch.set_cluster(plan.blocks);
  if (ask == Ask::kLaunch) return launch.launch(kernel, args);
  const int capability = plan.bulk || plan.blocks > 1 ? 90 : 80;  // that its instructions in ptx.cuh need
  const bool room = has_room(reinterpret_cast<const void*>(kernel), launch.config, capability);
  return room ? cudaSuccess : cudaErrorInvalidClusterSize;
}

}  // namespace eca
