// SPDX-License-Identifier: MIT
// L3. The parameters of a gate as arrays of the accumulator's type, and their gradients as tensors.
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

// Calls f(i, where number i begins) for `count` numbers in rows of c; without channels they are a few, in one row.
template <class F>
void each_number(const Strides& strides, int64_t c, int64_t count, F f) {
  const int64_t length = c > 0 ? c : count;
  for (int64_t i = 0, row = 0; i < count; ++row) {
    for (int64_t end = std::min(i + length, count), at = row * strides.row; i < end; ++i, at += strides.step) f(i, at);
  }
}

// Tensors as arrays of A: their own memory, or a copy that lives as long as this.
template <class A>
class Arrays {
 public:
  const A* of(const Tensor& t) { return of(t, {t.numel(), 1, 1}, t.numel()); }

  // A[t.numel() / taps], in rows of c numbers.
  const A* of(const Tensor& t, const Strides& strides, int64_t c) {
    const bool dense = t.is_contiguous();
    if (dense && holds<A>(t) && strides.step == 1) return static_cast<const A*>(t.const_data_ptr());
    const Tensor source = dense ? t : torch::stable::contiguous(t);
    return with_type<A>(t, [&](auto zero) {
      const auto* from = static_cast<const decltype(zero)*>(source.const_data_ptr());
      std::vector<A>& to = converted_.emplace_back(t.numel() / strides.taps);
      each_number(strides, c, to.size(),
                  [&](int64_t i, int64_t at) { to[i] = static_cast<A>(from[at + strides.taps / 2]); });
      return static_cast<const A*>(to.data());
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
    const GateInfo& gate = info_of(variant);
    args.shape = gate_shape(gate, tensors, c, flags);
    facts = gate_facts(variant, args.shape);
    require_gradients(gate, facts, tensors, c, flags);
    for (int i = 0; i < gate.count; ++i) {
      if (const Tensor* t = tensors[i])
        args.parameters[i] = arrays_.of(*t, strides_of(gate.parameters[i], c, flags, *t), c);
    }
  }

  GateArgs<A> args{};
  GateFacts facts;

 private:
  Arrays<A> arrays_;
};

// The parameters and statistics of batch norm. Given statistics are copied; others are allocated for forward to write.
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

// The gradient of one parameter: write to data(), A[numel / taps], then take tensor(). Gradients of another dtype than
// A, or with a stride (depthwise kernels, [C, rows]), go through an array of their own.
template <class A>
class ParameterOutput {
 public:
  ParameterOutput(const Tensor& parameter, const Strides& strides, int64_t c)
      : strides_(strides), c_(c), tensor_(empty_gradient(parameter)) {
    if (strides.step != 1 || !holds<A>(tensor_)) values_.resize(parameter.numel() / strides.taps);
  }

  A* data() { return values_.empty() ? static_cast<A*>(tensor_.mutable_data_ptr()) : values_.data(); }

  Tensor tensor() {
    if (values_.empty()) return tensor_;
    with_type<A>(tensor_, [&](auto zero) {
      using T = decltype(zero);
      T* to = static_cast<T*>(tensor_.mutable_data_ptr());
      const int64_t taps = strides_.taps;
      each_number(strides_, c_, values_.size(), [&](int64_t i, int64_t at) {
        for (int64_t j = 0; j < taps; ++j) to[at + j] = j == taps / 2 ? static_cast<T>(values_[i]) : zero;
      });
    });
    return tensor_;
  }

 private:
  Strides strides_;
  int64_t c_;
  Tensor tensor_;
  std::vector<A> values_;
};

}  // namespace eca
