// SPDX-License-Identifier: MIT
// L0. From the number of a variant to its gate, once for everything that must choose at run time.
#pragma once
#include "bidirectional.h"
#include "eca.h"
#include "multi_kernel.h"

namespace eca {
inline namespace ECA_TARGET {

// What a backend must allocate for a gate, and how the gradients of its parameters come about.
struct GateFacts {
  int64_t record_size, scratch_size;
  ParameterGradient gradients[kMaxParameters];
  int parameters;
};

template <template <class> class Gate, class A>
inline GateFacts facts_of(const GateArgs<A>& args) {
  GateFacts facts{Gate<A>::record_size(args), Gate<A>::scratch_size(args), {}, 0};
  facts.parameters = Gate<A>::gradients(args, facts.gradients);
  return facts;
}

template <class A>
inline GateFacts gate_facts(Variant variant, const GateArgs<A>& args) {
  switch (variant) {
    case Variant::kEca:
      return facts_of<EcaGate>(args);
    case Variant::kMultiKernel:
      return facts_of<MultiKernelGate>(args);
    case Variant::kBidirectional:
      break;
  }
  return facts_of<BidirectionalGate>(args);
}

}  // namespace ECA_TARGET
}  // namespace eca
