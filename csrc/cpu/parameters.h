// SPDX-License-Identifier: MIT
// L3. The parameters of a gate as arrays of the accumulator's type, and their gradients back as tensors.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

#include "../arguments.h"
#include "kernels.h"
#include "schedule.h"

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

// Tensors as arrays of A: their own memory, or a copy that lives as long as this.
template <class A>
class Arrays {
 public:
  // centre: see centre_tap.
  const A* of(const Tensor& t, int64_t centre = -1) {
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

 private:
  std::vector<std::vector<A>> converted_;
};

template <class A>
class Parameters {
 public:
  Parameters(Variant variant, const ParameterList& tensors, const Tensor& x, int64_t c, int64_t flags) {
    require_parameters<A>(tensors, x);
    args.shape = gate_shape(variant, tensors, c, flags);
    facts = gate_facts(variant, args.shape);
    for (int i = 0; i < facts.parameters; ++i) {
      args.parameters[i] = tensors[i] ? arrays_.of(*tensors[i], centre_tap(variant, flags, *tensors[i], i)) : nullptr;
    }
  }

  GateArgs<A> args{};
  GateFacts facts;

 private:
  Arrays<A> arrays_;
};

// What batch norm is given. Its statistics are copied, or made for them to be written.
template <class A>
class NormParameters {
 public:
  NormParameters(const NormTensors& norm, const Tensor& x, int64_t c)
      : mean(empty_vector(x, c, dtype_of_accumulator<A>())), var(empty_vector(x, c, dtype_of_accumulator<A>())) {
    require_norm<A>(norm, x, c);
    numbers.weight = norm.weight ? arrays_.of(*norm.weight) : nullptr;
    numbers.bias = norm.bias ? arrays_.of(*norm.bias) : nullptr;
    numbers.mean = static_cast<A*>(mean.mutable_data_ptr());
    numbers.var = static_cast<A*>(var.mutable_data_ptr());
    numbers.eps = norm.eps;
    if (!norm.mean) return;
    std::copy_n(arrays_.of(*norm.mean), c, numbers.mean);
    std::copy_n(arrays_.of(*norm.var), c, numbers.var);
  }

  NormNumbers<A> numbers{};
  Tensor mean, var;  // A[C]

 private:
  Arrays<A> arrays_;
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
