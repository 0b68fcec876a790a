// SPDX-License-Identifier: MIT
// L2. The launch of the two-phase kernel.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "two_phase_args.h"

namespace eca {

template <DType D>
using AccumulatorFor = std::conditional_t<D == DType::kDouble, double, float>;

// two_phase_<dtype>.cu holds one of these each, for both kinds of call.
template <DType D, class Call>
cudaError_t launch_two_phase_of(const Plan& plan, const TwoPhaseArgs<AccumulatorFor<D>, Call>& args,
                                cudaStream_t stream);

template <class A, class Call>
cudaError_t launch_two_phase(const Plan& plan, const TwoPhaseArgs<A, Call>& args, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, double>) {
    return launch_two_phase_of<DType::kDouble, Call>(plan, args, stream);
  } else {
    switch (args.problem.dtype) {
      case DType::kHalf:
        return launch_two_phase_of<DType::kHalf, Call>(plan, args, stream);
      case DType::kBFloat16:
        return launch_two_phase_of<DType::kBFloat16, Call>(plan, args, stream);
      default:
        return launch_two_phase_of<DType::kFloat, Call>(plan, args, stream);
    }
  }
}

}  // namespace eca
