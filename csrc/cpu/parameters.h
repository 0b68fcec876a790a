// SPDX-License-Identifier: MIT
// L3. The parameters of a gate as arrays of the accumulator's type, and their gradients back as tensors.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

#include "../arguments.h"
#include "kernels.h"

namespace eca {

// Calls f(T{}) with the C++ type of the parameter's elements.
template <class A, class F>
auto with_type(const Tensor& t, F f) {
  switch (dtype_of(t)) {
    case DType::kHalf:
      return f(torch::headeronly::Half{});
    case DType::kBFloat16:
      return f(torch::headeronly::BFloat16{});
    default:
      return f(A{});
  }
}

template <class A>
class Parameters {
 public:
  Parameters(Variant variant, const ParameterList& tensors, const Tensor& x, int64_t c, int64_t flags) {
    require_parameters<A>(tensors, x);
    args.shape = gate_shape(variant, tensors, c, flags);
    facts = gate_facts(variant, args.shape);
    for (int i = 0; i < facts.parameters; ++i) {
      args.parameters[i] = tensors[i] ? values(*tensors[i], centre_tap(variant, flags, *tensors[i], i)) : nullptr;
    }
  }

  GateArgs<A> args{};
  GateFacts facts;

 private:
  const A* values(const Tensor& t, int64_t centre) {
    const bool dense = t.is_contiguous();
    if (dense && holds<A>(t) && centre < 0) return static_cast<const A*>(t.const_data_ptr());
    const Tensor source = dense ? t : torch::stable::contiguous(t);
    return with_type<A>(t, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(source.const_data_ptr());
      const int64_t step = centre < 0 ? 1 : t.size(2), count = t.numel() / step;
      converted_.emplace_back(count);
      for (int64_t j = 0; j < count; ++j) {
        converted_.back()[j] = static_cast<A>(from[j * step + std::max<int64_t>(centre, 0)]);
      }
      return static_cast<const A*>(converted_.back().data());
    });
  }

  std::vector<std::vector<A>> converted_;
};

// The gradient of one parameter: write to data(), then take tensor(). Only a gradient that does not hold A, or that is
// not wholly computed (depthwise kernels), goes through an array of its own.
template <class A>
class ParameterOutput {
 public:
  ParameterOutput(const Tensor& parameter, int64_t centre) : centre_(centre), tensor_(empty_gradient(parameter)) {
    if (centre >= 0 || !holds<A>(tensor_)) values_.resize(centre < 0 ? parameter.numel() : parameter.size(0));
  }

  A* data() { return values_.empty() ? static_cast<A*>(tensor_.mutable_data_ptr()) : values_.data(); }

  Tensor tensor() {
    if (values_.empty()) return tensor_;
    with_type<A>(tensor_, [&](auto zero) {
      using T = decltype(zero);
      T* to = static_cast<T*>(tensor_.mutable_data_ptr());
      const int64_t taps = centre_ < 0 ? 1 : tensor_.size(2), centre = std::max<int64_t>(centre_, 0);
      const int64_t count = tensor_.numel();
      for (int64_t j = 0; j < count; ++j) to[j] = j % taps == centre ? static_cast<T>(values_[j / taps]) : zero;
    });
    return tensor_;
  }

 private:
  int64_t centre_;
  Tensor tensor_;
  std::vector<A> values_;
};

}  // namespace eca
