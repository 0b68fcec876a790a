// SPDX-License-Identifier: MIT
// L2. Picks the instance of the two-phase kernels that a plan asks for. Included by one file per dtype, so that they
// compile in parallel.
#pragma once
#include "launch.cuh"
#include "two_phase.cuh"

namespace eca {

// Calls f(layout, width, straddle) with the plan's choices as integral constants.
template <DType D, class F>
cudaError_t with_instance(Layout layout, const TwoPhasePlan& plan, F f) {
  using Planes = std::integral_constant<Layout, Layout::kPlanes>;
  using Rows = std::integral_constant<Layout, Layout::kRows>;
  using Widest = std::integral_constant<int, 16 / sizeof(typename TypeOf<D>::type)>;
  if constexpr (D != DType::kDouble) {
    if (plan.straddle) return f(Planes(), Widest(), std::true_type());
  }
  const auto with = [&](auto width) {
    return layout == Layout::kPlanes ? f(Planes(), width, std::false_type()) : f(Rows(), width, std::false_type());
  };
  return plan.vector == 1 ? with(std::integral_constant<int, 1>()) : with(Widest());
}

template <DType D, class Call>
cudaError_t launch_two_phase_of(const Plan& plan, const TwoPhaseArgs<AccumulatorFor<D>, Call>& args,
                                cudaStream_t stream) {
  using T = typename TypeOf<D>::type;
  const LaunchConfig launch(dim3(static_cast<unsigned>(plan.blocks)), plan.threads, plan.two_phase.shared.total,
                            stream);
  return with_instance<D>(args.problem.layout, plan.two_phase, [&](auto layout, auto width, auto straddle) {
    constexpr Layout L = decltype(layout)::value;
    constexpr int N = decltype(width)::value;
    constexpr bool kStraddle = decltype(straddle)::value;
    if constexpr (std::is_same_v<Call, ForwardCall>) {
      const cudaError_t error = launch.launch(&eca_two_phase_forward_kernel<T, L, N, kStraddle>, args);
      return launch_pack_signs(error, args.problem, args.call, plan, stream);
    } else {
      return launch.launch(&eca_two_phase_backward_kernel<T, L, N, kStraddle>, args);
    }
  });
}

}  // namespace eca
