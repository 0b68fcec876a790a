// SPDX-License-Identifier: MIT
// L0. The list of gates and their descriptions. A new gate is one more type in the list; its operators, its rows in
// the CPU's tables, its kernels and its name in launch plans follow.
#pragma once
#include "bidirectional.h"
#include "eca.h"
#include "multi_kernel.h"

namespace eca {
inline namespace ECA_TARGET {

template <template <class> class... All>
struct GateList;
using Gates = GateList<EcaGate, MultiKernelGate, BidirectionalGate>;

// The description of a gate that the operators use.
struct GateInfo {
  const char* name;
  const Parameter* parameters;
  int count;  // of its parameters
};

template <int V, template <class> class First, template <class> class... Rest>
struct GateAt : GateAt<V - 1, Rest...> {};
template <template <class> class First, template <class> class... Rest>
struct GateAt<0, First, Rest...> {
  template <class A>
  using Type = First<A>;
};

template <template <class> class... All>
struct GateList {
  static constexpr int kCount = sizeof...(All);
  static constexpr GateInfo kInfo[] = {
      {All<float>::kName, All<float>::kParameters, sizeof(All<float>::kParameters) / sizeof(Parameter)}...};
  static_assert((... && (sizeof(All<float>::kParameters) / sizeof(Parameter) <= kMaxParameters)));
  static_assert((... && !All<float>::kParameters[0].optional), "the first parameter decides the dtype of all");
  template <int V, class A>
  using At = typename GateAt<V, All...>::template Type<A>;
};

inline constexpr int kVariants = Gates::kCount;
inline constexpr Variant kEca{0};  // the one that batch norm may precede

template <Variant V, class A>
using GateOf = Gates::At<static_cast<int>(V), A>;

constexpr const GateInfo& info_of(Variant variant) { return Gates::kInfo[static_cast<int>(variant)]; }

// What a backend must allocate for a gate, and how the gradients of its parameters are combined.
struct GateFacts {
  int parameters;
  Gradient gradient[kMaxParameters];
  GateNeeds needs[2];                   // forward, backward
  int64_t sample_record, block_record;  // counts of A that `record` writes
  int64_t numbers;                      // in all parameters that are a few numbers

  // Memory for each sample that does not grow with the channels is a small multiple of this.
  int64_t size() const { return sample_record + block_record + needs[1].scratch + numbers; }
};

template <int V = 0>
GateFacts gate_facts(Variant variant, const GateShape& shape) {
  if constexpr (V + 1 < kVariants) {
    if (variant != static_cast<Variant>(V)) return gate_facts<V + 1>(variant, shape);
  }
  using Gate = GateOf<static_cast<Variant>(V), float>;
  GateFacts facts{};
  facts.parameters = info_of(variant).count;
  Gate::gradients(shape, facts.gradient);
  for (const bool backward : {false, true}) facts.needs[backward] = Gate::needs(shape, backward);
  for (int i = 0; i < facts.parameters; ++i) {
    const Gradient& g = facts.gradient[i];
    int64_t& size = g.how == Combine::kBlocks ? facts.block_record : facts.sample_record;
    if (size < g.offset + g.count) size = g.offset + g.count;
    if (!g.has_rows()) facts.numbers += g.count;
  }
  return facts;
}

}  // namespace ECA_TARGET
}  // namespace eca
