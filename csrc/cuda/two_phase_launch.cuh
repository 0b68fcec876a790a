// SPDX-License-Identifier: MIT
// L2. Picks the instance of the two-phase kernel that a plan asks for. Included by one file per dtype, which so compile
// side by side.
#pragma once
#include "launch.cuh"
#include "two_phase.cuh"
#include "two_phase.h"

namespace eca {

template <class Call>
struct PassOf;
template <>
struct PassOf<ForwardCall> {
  template <class T, Layout L, int N>
  using type = ForwardPass<T, L, N>;
};
template <>
struct PassOf<BackwardCall> {
  template <class T, Layout L, int N>
  using type = BackwardPass<T, L, N>;
};

template <class T, Layout L, class Call>
cudaError_t launch_two_phase_in(const Plan& plan, const TwoPhaseArgs<Accumulator<T>, Call>& args, cudaStream_t stream) {
  return with_width<T>(plan.vector, [&](auto width) {
    using Pass = typename PassOf<Call>::template type<T, L, decltype(width)::value>;
    return launch(two_phase<Pass>, dim3(static_cast<unsigned>(plan.blocks)), dim3(static_cast<unsigned>(plan.threads)),
                  static_cast<size_t>(plan.shared.total), stream, args);
  });
}

template <class T, class Call>
cudaError_t launch_two_phase_as(const Plan& plan, const TwoPhaseArgs<Accumulator<T>, Call>& args, cudaStream_t stream) {
  return args.problem.layout == Layout::kPlanes ? launch_two_phase_in<T, Layout::kPlanes>(plan, args, stream)
                                                : launch_two_phase_in<T, Layout::kRows>(plan, args, stream);
}

}  // namespace eca
