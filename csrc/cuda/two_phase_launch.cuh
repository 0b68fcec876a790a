// SPDX-License-Identifier: MIT
// L2. Picks the instance of the two-phase kernel that a plan asks for. Included by one file per dtype, which so compile
// side by side.
#pragma once
#include "launch.cuh"
#include "two_phase.cuh"

namespace eca {

template <DType D>
struct TypeOf;
template <>
struct TypeOf<DType::kFloat> {
  using type = float;
};
template <>
struct TypeOf<DType::kDouble> {
  using type = double;
};
template <>
struct TypeOf<DType::kHalf> {
  using type = __half;
};
template <>
struct TypeOf<DType::kBFloat16> {
  using type = __nv_bfloat16;
};

template <DType D, class Call>
cudaError_t launch_two_phase_of(const Plan& plan, const TwoPhaseArgs<AccumulatorFor<D>, Call>& args,
                                cudaStream_t stream) {
  using T = typename TypeOf<D>::type;
  const LaunchConfig launch(dim3(static_cast<unsigned>(plan.blocks)), plan.threads, plan.two_phase.shared.total,
                            stream);
  const auto run = [&](auto layout, auto width, auto straddle) {
    constexpr Layout L = decltype(layout)::value;
    constexpr int N = decltype(width)::value;
    constexpr bool kStraddle = decltype(straddle)::value;
    if constexpr (std::is_same_v<Call, ForwardCall>) {
      return launch.launch(&eca_two_phase_forward_kernel<T, L, N, kStraddle>, args);
    } else {
      return launch.launch(&eca_two_phase_backward_kernel<T, L, N, kStraddle>, args);
    }
  };
  using Planes = std::integral_constant<Layout, Layout::kPlanes>;
  using Rows = std::integral_constant<Layout, Layout::kRows>;
  const auto run_with = [&](auto width) {
    return args.problem.layout == Layout::kPlanes ? run(Planes(), width, std::false_type())
                                                  : run(Rows(), width, std::false_type());
  };
  using Widest = std::integral_constant<int, 16 / sizeof(T)>;
  if constexpr (D != DType::kDouble) {
    if (plan.two_phase.straddle) return run(Planes(), Widest(), std::true_type());
  }
  return plan.two_phase.vector == 1 ? run_with(std::integral_constant<int, 1>()) : run_with(Widest());
}

}  // namespace eca
