// SPDX-License-Identifier: MIT
// L3. The parameters of a gate as arrays of the accumulator's type, and their gradients back as tensors.
#pragma once
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <vector>

#include "../gates/registry.h"
#include "../operators.h"

namespace eca {

// Checks the parameters' shapes against C channels and the options, and fills kernel_size and hidden.
template <class A>
GateArgs<A> gate_arguments(Variant variant, const ParameterList& p, int64_t c, int64_t flags) {
  const auto is_taps = [&](const Tensor& t) {
    return t.dim() == 3 && has_sizes(t, {1, 1, t.size(2)}) && t.size(2) % 2 == 1;
  };
  GateArgs<A> args{{}, c, 0, 0, flags};
  if (variant == Variant::kEca) {
    require(is_taps(*p[0]), "weight");
    require(!p[1] || has_sizes(*p[1], {1}), "bias");
    args.kernel_size = p[0]->size(2);
  } else if (variant == Variant::kMultiKernel) {
    const int64_t rows = (flags & kCrossChannel) ? 1 : c;
    for (int i = 0; i < 3; ++i) require(has_sizes(*p[i], {rows, 1, 3 + 2 * i}), "weight");
    require(has_sizes(*p[3], {3, c}) && has_sizes(*p[4], {3}), "mix_weight");
    require((flags & kCrossChannel) || !(flags & kCircular), "padding_mode");
    args.kernel_size = 7;
  } else {
    require(is_taps(*p[0]) && same_sizes(*p[0], *p[1]), "weight_forward");
    require(p[2]->dim() == 2 && p[2]->size(1) == c, "hidden_weight");
    args.kernel_size = p[0]->size(2);
    args.hidden = p[2]->size(0);
    require(has_sizes(*p[3], {args.hidden}), "hidden_bias");
    require(has_sizes(*p[4], {2, args.hidden}) && has_sizes(*p[5], {2}), "mix_weight");
  }
  require(!args.circular() || args.kernel_size / 2 <= c, "weight");
  return args;
}

// Depthwise kernels on a sequence of length 1 act through their centre taps alone; -1: the whole tensor counts.
inline int64_t centre_tap(Variant variant, int64_t flags, const Tensor& t, int i) {
  return variant == Variant::kMultiKernel && !(flags & kCrossChannel) && i < 3 ? t.size(2) / 2 : -1;
}

template <class A>
bool holds(const Tensor& t) {
  return dtype_of(t) == (sizeof(A) == sizeof(double) ? DType::kDouble : DType::kFloat);
}

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
    const int32_t dtype = raw_dtype(*tensors[0]);
    require(dtype == raw_dtype(x) || holds<A>(*tensors[0]), "parameter");
    for (const Tensor* t : tensors) require(!t || (t->is_cpu() && raw_dtype(*t) == dtype), "parameter");
    args = gate_arguments<A>(variant, tensors, c, flags);
    facts = gate_facts(variant, args);
    for (int i = 0; i < facts.parameters; ++i) {
      args.parameters[i] = tensors[i] ? values(*tensors[i], centre_tap(variant, flags, *tensors[i], i)) : nullptr;
    }
  }

  GateArgs<A> args;
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
  ParameterOutput(const Tensor& parameter, int64_t centre) : centre_(centre), tensor_(empty(parameter)) {
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
  static Tensor empty(const Tensor& t) {
    int64_t strides[3], stride = 1;
    for (int64_t d = t.dim(); d-- > 0; stride *= std::max<int64_t>(t.size(d), 1)) strides[d] = stride;
    return empty_strided(t, t.dim(), t.sizes().data(), strides, raw_dtype(t));
  }

  int64_t centre_;
  Tensor tensor_;
  std::vector<A> values_;
};

}  // namespace eca
