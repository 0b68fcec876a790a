// SPDX-License-Identifier: MIT
// L0. The gate of each variant, and what it says of itself.
#pragma once
#include "bidirectional.h"
#include "eca.h"
#include "multi_kernel.h"

namespace eca {
inline namespace ECA_TARGET {

// The gate of each variant.
template <Variant V, class A>
struct GateType;
template <class A>
struct GateType<Variant::kEca, A> {
  using type = EcaGate<A>;
};
template <class A>
struct GateType<Variant::kMultiKernel, A> {
  using type = MultiKernelGate<A>;
};
template <class A>
struct GateType<Variant::kBidirectional, A> {
  using type = BidirectionalGate<A>;
};
template <Variant V, class A>
using GateOf = typename GateType<V, A>::type;

// What a backend must allocate for a gate, and how the gradients of its parameters come about.
struct GateFacts {
  int parameters;
  Parameter parameter[kMaxParameters];
  GateNeeds needs[2];                   // forward, backward
  int64_t sample_record, block_record;  // sizes of what `record` leaves
  int64_t numbers;                      // of the parameters that are a few numbers

  // Whatever is there for each sample and does not grow with the channels is a small multiple of this.
  int64_t size() const { return sample_record + block_record + needs[1].scratch + numbers; }
};

template <int V = 0>
GateFacts gate_facts(Variant variant, const GateShape& shape) {
  if constexpr (V + 1 < kVariants) {
    if (variant != static_cast<Variant>(V)) return gate_facts<V + 1>(variant, shape);
  }
  using Gate = GateOf<static_cast<Variant>(V), float>;
  GateFacts facts{};
  facts.parameters = Gate::parameters(shape, facts.parameter);
  for (const bool backward : {false, true}) facts.needs[backward] = Gate::needs(shape, backward);
  for (int i = 0; i < facts.parameters; ++i) {
    const Parameter& p = facts.parameter[i];
    int64_t& size = p.how == Combine::kBlocks ? facts.block_record : facts.sample_record;
    if (size < p.offset + p.count) size = p.offset + p.count;
    if (!p.has_rows()) facts.numbers += p.count;
  }
  return facts;
}

}  // namespace ECA_TARGET
}  // namespace eca
