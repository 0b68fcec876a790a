// SPDX-License-Identifier: MIT
// L2. How host code launches the kernels.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "../gates/registry.h"
#include "kernel_args.h"

namespace eca {

// kRoom asks whether the device has room for one cluster, kLaunch launches. Without room, both return
// cudaErrorInvalidClusterSize, and nothing is launched.
enum class Ask { kRoom, kLaunch };

// one_pass_<dtype>.cu holds one of these each, for both kinds of call.
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

// two_phase_<dtype>.cu holds one of these each, for both kinds of call.
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
  return cudaErrorInvalidValue;  // maps of another accumulator than the arguments'
}

// The kernels of batch norm with statistics of its own, which touch maps: first those that read them, then, after
// launch_norm_channels, those that write. norm_<dtype>.cu holds one of these each, for both kinds of call.
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
  return cudaErrorInvalidValue;  // maps of another accumulator than the arguments'
}

// norm_channels.cu: the kernels between those. threads: at most so many in a block; blocks: of the gates' kernel, as
// many as `memory` has pieces for.
template <class A, class Call>
cudaError_t launch_norm_channels(const Plan& plan, const NormArgs<A, Call>& args, int threads, int64_t blocks,
                                 cudaStream_t stream);

// After kernels that have written y element by element, so that its signs are left to be written; those of other plans,
// and of calls that want none, need nothing. error: theirs.
cudaError_t launch_pack_signs(cudaError_t error, const Problem& problem, const ForwardCall& call, const Plan& plan,
                              cudaStream_t stream);

// wide: A is double. threads: of a block. programmatic: it may begin while the kernel before it ends.
cudaError_t launch_parameter_gradients(bool wide, int threads, bool programmatic, const GradientArgs& args,
                                       cudaStream_t stream);

}  // namespace eca
