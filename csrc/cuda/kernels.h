// SPDX-License-Identifier: MIT
// L2. How host code launches the kernels.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "../gates/registry.h"
#include "kernel_args.h"

namespace eca {

// kRoom asks whether the device has room for one cluster: cudaSuccess, or cudaErrorInvalidClusterSize if not. kLaunch
// launches.
enum class Ask { kRoom, kLaunch };

// Each one_pass_<dtype>.cu defines one of these, for both kinds of call.
template <DType D, class Call>
cudaError_t launch_one_pass_of(const OnePassArgs<Call>& args, int threads, cudaStream_t stream, Ask ask);

template <class Call>
cudaError_t launch_one_pass(const OnePassArgs<Call>& args, int threads, cudaStream_t stream, Ask ask) {
  const DType dtype = args.problem.dtype;
  if (dtype == DType::kHalf) return launch_one_pass_of<DType::kHalf>(args, threads, stream, ask);
  if (dtype == DType::kBFloat16) return launch_one_pass_of<DType::kBFloat16>(args, threads, stream, ask);
  return launch_one_pass_of<DType::kFloat>(args, threads, stream, ask);
}

template <DType D>
using AccumulatorFor = std::conditional_t<D == DType::kDouble, double, float>;

// Each two_phase_<dtype>.cu defines one of these, for both kinds of call.
template <DType D, class Call>
cudaError_t launch_two_phase_of(const Plan& plan, const TwoPhaseArgs<AccumulatorFor<D>, Call>& args,
                                cudaStream_t stream);

template <int D = 0, class A, class Call>
cudaError_t launch_two_phase(const Plan& plan, const TwoPhaseArgs<A, Call>& args, cudaStream_t stream) {
  if constexpr (D + 1 < kDTypes) {
    if (args.problem.dtype != static_cast<DType>(D)) return launch_two_phase<D + 1>(plan, args, stream);
  }
  if constexpr (std::is_same_v<A, AccumulatorFor<static_cast<DType>(D)>>)
    return launch_two_phase_of<static_cast<DType>(D), Call>(plan, args, stream);
  return cudaErrorInvalidValue;  // A is not the accumulator of the maps' dtype
}

// The kernels of norm.cuh, which touch maps: kRead sums over them and, after launch_norm_channels, kWrite writes. Each
// norm_<dtype>.cu defines one of these, for both kinds of call.
enum class Norm { kRead, kWrite };
template <DType D, class Call>
cudaError_t launch_norm_of(Norm which, const Plan& plan, const NormArgs<AccumulatorFor<D>, Call>& args,
                           int multiprocessors, cudaStream_t stream);

template <int D = 0, class A, class Call>
cudaError_t launch_norm(Norm which, const Plan& plan, const NormArgs<A, Call>& args, int multiprocessors,
                        cudaStream_t stream) {
  if constexpr (D + 1 < kDTypes) {
    if (args.problem.dtype != static_cast<DType>(D))
      return launch_norm<D + 1>(which, plan, args, multiprocessors, stream);
  }
  if constexpr (std::is_same_v<A, AccumulatorFor<static_cast<DType>(D)>>)
    return launch_norm_of<static_cast<DType>(D), Call>(which, plan, args, multiprocessors, stream);
  return cudaErrorInvalidValue;  // A is not the accumulator of the maps' dtype
}

// norm_channels.cu: the kernels between kRead and kWrite. threads: the most of a block; blocks: of the kernel that
// computes gates, at most the pieces of `memory`.
template <class A, class Call>
cudaError_t launch_norm_channels(const Plan& plan, const NormArgs<A, Call>& args, int threads, int64_t blocks,
                                 cudaStream_t stream);

// Writes the signs of y after kernels that wrote y element by element; does nothing after other kernels, and for calls
// without signs. error: that of the launch before, returned if it failed.
cudaError_t launch_pack_signs(cudaError_t error, const Problem& problem, const ForwardCall& call, const Plan& plan,
                              cudaStream_t stream);

// wide: A is double. threads: of a block. programmatic: the kernel may begin before the previous one has ended.
cudaError_t launch_parameter_gradients(bool wide, int threads, bool programmatic, const GradientArgs& args,
                                       cudaStream_t stream);

}  // namespace eca
