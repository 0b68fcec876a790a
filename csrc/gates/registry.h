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
  Exchanges exchanges[2];  // forward, backward
  Weights weights;
  ParameterGradient gradients[kMaxParameters];
  int parameters;
};

// Calls f with the gate of the variant.
template <class A, class F>
ECA_HD void with_gate(Variant variant, const GateArgs<A>& args, F f) {
  switch (variant) {
    case Variant::kEca:
      return f(EcaGate<A>{args});
    case Variant::kMultiKernel:
      return f(MultiKernelGate<A>{args});
    case Variant::kBidirectional:
      return f(BidirectionalGate<A>{args});
  }
}

template <class A>
inline GateFacts gate_facts(Variant variant, const GateArgs<A>& args) {
  GateFacts facts{};
  with_gate(variant, args, [&](auto gate) {
    facts.record_size = gate.record_size(args);
    facts.scratch_size = gate.scratch_size(args);
    for (int backward = 0; backward < 2; ++backward) facts.exchanges[backward] = gate.exchanges(args, backward);
    facts.weights = gate.weights(args);
    facts.parameters = gate.gradients(args, facts.gradients);
  });
  return facts;
}

}  // namespace ECA_TARGET
}  // namespace eca
