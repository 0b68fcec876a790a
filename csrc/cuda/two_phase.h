// SPDX-License-Identifier: MIT
// L2. What the two-phase kernel is given (two_phase.cuh says what it does), and its launch.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

#include "../gates/gate.h"
#include "../plan/plan.h"

namespace eca {

// call is a ForwardCall or a BackwardCall. All pointers but those in it are to the workspace.
template <class A, class Call>
struct TwoPhaseArgs {
  Problem problem;
  Call call;
  Tiling tiling;
  SharedLayout shared;
  int lanes;
  int64_t tickets, lag;
  GateArgs<A> gate_args;
  int64_t gate_numbers;  // per block, in `memory` if they are not in shared memory
  unsigned long long* next_ticket;
  unsigned* arrived;         // [N]: tiles whose first visit is over; one more when the gate is there
  A *partial, *mean;         // [N, blocks, C], [N, C]
  A *gate, *shift, *memory;  // [N, C], [N, C] (backward), [grid, gate_numbers]
};

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
