// SPDX-License-Identifier: MIT
// L2. Picks the instances of batch norm's kernels that a plan asks for. Included by one file per dtype, so that they
// compile in parallel.
#pragma once
#include <algorithm>

#include "norm.cuh"
#include "two_phase_launch.cuh"

namespace eca {

template <DType D, class Call>
cudaError_t launch_norm_of(Norm which, const Plan& plan, const NormArgs<AccumulatorFor<D>, Call>& args,
                           int multiprocessors, cudaStream_t stream) {
  using T = typename TypeOf<D>::type;
  constexpr bool kForward = std::is_same_v<Call, ForwardCall>;
  const TwoPhasePlan& two = plan.two_phase;
  const int64_t partial = partial_sums(args.problem, two.tiling.channels, two.lanes, two.vector, plan.threads) *
                          int64_t{sizeof(T) == 8 ? 8 : 4};
  const int64_t most =
      int64_t{two_phase_blocks(kForward ? Direction::kForward : Direction::kBackward)} * multiprocessors;
  const LaunchConfig launch(dim3(static_cast<unsigned>(std::min(args.problem.n * two.tiling.count, most))),
                            plan.threads, which == Norm::kRead ? two.shared.sums + 2 * partial : 0, stream);
  return with_instance<D>(args.problem.layout, two, [&](auto layout, auto width, auto straddle) {
    constexpr Layout L = decltype(layout)::value;
    constexpr int N = decltype(width)::value;
    constexpr bool kStraddle = decltype(straddle)::value;
    if constexpr (kForward) {
      if (which == Norm::kRead) return launch.launch(&eca_norm_moments_kernel<T, L, N, kStraddle>, args);
      const cudaError_t error = launch.launch(&eca_norm_apply_kernel<T, L, N, kStraddle>, args);
      return launch_pack_signs(error, args.problem, args.call, plan, stream);
    } else {
      return launch.launch(which == Norm::kRead ? &eca_norm_dots_kernel<T, L, N, kStraddle>
                                                : &eca_norm_gradient_kernel<T, L, N, kStraddle>,
                           args);
    }
  });
}

}  // namespace eca
