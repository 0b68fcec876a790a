// SPDX-License-Identifier: MIT
// L3. What the operators of every backend require of their arguments, and the parameters' shapes as the gates see them.
#pragma once
#include <algorithm>

#include "feature_maps.h"
#include "gates/registry.h"
#include "operators.h"

namespace eca {

template <class A>
int32_t dtype_of_accumulator() {
  return sizeof(A) == sizeof(double) ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Requires a feature map with the device, dtype and sizes of x.
inline void require_like(const Tensor& t, const Tensor& x, const char* argument) {
  require(same_device(t, x) && raw_dtype(t) == raw_dtype(x) && same_sizes(t, x), argument);
}

// Checks what backward takes besides feature maps and parameters.
template <class A>
void require_saved(const Saved& saved, const Tensor& x, const MapShape& shape, int64_t per_byte, int64_t flags) {
  const bool relu = (flags & kRelu) != 0;
  const auto require_numbers = [&](const Tensor& t, std::initializer_list<int64_t> sizes, const char* argument) {
    require(same_device(t, x) && has_sizes(t, sizes) && t.is_contiguous() && raw_dtype(t) == dtype_of_accumulator<A>(),
            argument);
  };
  require_numbers(*saved.mean, {shape.n(), shape.c()}, "mean");
  if (saved.norm_mean) require_numbers(*saved.norm_mean, {shape.c()}, "norm_mean");
  if (saved.norm_var) require_numbers(*saved.norm_var, {shape.c()}, "norm_var");
  require(saved.signs.has_value() == relu && (relu || !(flags & kGradResidual)), "signs");
  if (!relu) return;
  const Tensor& signs = *saved.signs;
  const int64_t bytes = sign_bytes(shape.c() * shape.s, per_byte);
  require(same_device(signs, x) && has_sizes(signs, {shape.n(), bytes}) && signs.is_contiguous() &&
              raw_dtype(signs) == aoti_torch_dtype_uint8(),
          "signs");
}

// uint8[N, sign_bytes] for the signs of y, or uint8[0] without kRelu.
inline Tensor empty_signs(const Tensor& x, const MapShape& shape, int64_t per_byte, int64_t flags) {
  if (!(flags & kRelu)) return empty_vector(x, 0, aoti_torch_dtype_uint8());
  return empty_matrix(x, shape.n(), sign_bytes(shape.c() * shape.s, per_byte), aoti_torch_dtype_uint8());
}

inline Signs signs_of(const Tensor& signs, bool written) {
  if (signs.dim() == 1) return {};
  const void* const data = written ? signs.mutable_data_ptr() : signs.const_data_ptr();
  return {static_cast<uint8_t*>(const_cast<void*>(data)), signs.size(1)};
}

// Requires contiguous [C] on the device of x, in the dtype of x or of the accumulator, the same within each pair.
template <class A>
void require_norm(const NormTensors& norm, const Tensor& x, int64_t c) {
  const auto fits = [&](const Tensor* t, const Tensor* other) {
    const auto dtype = [](const Tensor& tensor) { return raw_dtype(tensor); };
    return !t || (same_device(*t, x) && has_sizes(*t, {c}) && t->is_contiguous() &&
                  (dtype(*t) == dtype(x) || dtype(*t) == dtype_of_accumulator<A>()) &&
                  (!other || dtype(*t) == dtype(*other)));
  };
  require(fits(norm.weight, norm.bias) && fits(norm.bias, nullptr), "norm_weight");
  require(fits(norm.mean, norm.var) && fits(norm.var, nullptr) && !norm.mean == !norm.var, "norm_mean");
}

// A size that kernels hold in an int.
inline int count_of(const char* argument, int64_t size) {
  if (size < kMostRows) return static_cast<int>(size);
  throw std::invalid_argument(std::string(argument) + ": expected a size below 2^28, got " + std::to_string(size));
}

// Checks the parameters' shapes against what the gate declares, and finds the sizes that it leaves open.
inline GateShape gate_shape(const GateInfo& gate, const ParameterList& tensors, int64_t c, int64_t flags) {
  const bool cross = (flags & kCrossChannel) != 0;
  GateShape shape{c, 1, 0, flags};
  int open[] = {-1, -1};  // kTaps, kHidden: decided by the first parameter that has them
  for (int i = 0; i < gate.count; ++i) {
    if (!tensors[i]) continue;
    const Parameter& p = gate.parameters[i];
    const auto sizes = tensors[i]->sizes();
    require(static_cast<int>(sizes.size()) == p.dim(), p.name);
    for (int d = 0; d < p.dim(); ++d) {
      const int expected = p.sizes[d];
      if (expected == kTaps || expected == kHidden) {
        int& size = open[expected == kHidden];
        if (size < 0) size = count_of(p.name, sizes[d]);
        require(size == sizes[d] && (expected == kHidden || size % 2 == 1), p.name);
      } else {
        const bool channels = expected == kC || (expected == kBranches && !cross);
        require(sizes[d] == (channels ? c : expected == kBranches ? 1 : expected), p.name);
      }
    }
    if (p.dim() == 3) shape.kernel_size = std::max(shape.kernel_size, static_cast<int>(sizes[2]));
    require(!shape.circular() || cross || p.sizes[0] != kBranches, "padding_mode");
  }
  shape.hidden = std::max(open[1], 0);
  require(!shape.circular() || shape.half() <= c, "padding_mode");
  return shape;
}

// Where the elements of a parameter lie: number [r, c] is the middle one of `taps` elements at r * row + c * step.
// taps is k for depthwise kernels on a sequence of length 1, else 1. A parameter of a few numbers is one row.
struct Strides {
  int64_t row, step, taps;
};

inline Strides strides_of(const Parameter& p, int64_t c, int64_t flags, const Tensor& t) {
  if (p.sizes[0] == kBranches && !(flags & kCrossChannel)) return {0, t.size(2), t.size(2)};
  if (p.sizes[0] == kC) return {1, t.numel() / std::max<int64_t>(c, 1), 1};
  return {c, 1, 1};
}

// Whether each gradient fills its parameter: memory that a gate forgets would stay unwritten.
inline void require_gradients(const GateInfo& gate, const GateFacts& facts, const ParameterList& tensors, int64_t c,
                              int64_t flags) {
  for (int i = 0; i < gate.count; ++i) {
    if (!tensors[i]) continue;
    const Gradient& g = facts.gradient[i];
    const int64_t numbers = tensors[i]->numel() / strides_of(gate.parameters[i], c, flags, *tensors[i]).taps;
    require(numbers == (g.has_rows() ? g.count * c : g.count), gate.parameters[i].name);
  }
}

template <class A>
bool holds(const Tensor& t) {
  return dtype_of(t) == (sizeof(A) == sizeof(double) ? DType::kDouble : DType::kFloat);
}

// Requires parameters on the device of x, all of the dtype of x or all of the accumulator's.
template <class A>
void require_parameters(const ParameterList& tensors, const Tensor& x) {
  const int32_t dtype = raw_dtype(*tensors[0]);
  require(dtype == raw_dtype(x) || holds<A>(*tensors[0]), "parameter");
  for (const Tensor* t : tensors) require(!t || (same_device(*t, x) && raw_dtype(*t) == dtype), "parameter");
}

// An uninitialised, contiguous gradient of parameter t.
inline Tensor empty_gradient(const Tensor& t) {
  int64_t strides[4], stride = 1;
  for (int64_t d = t.dim(); d-- > 0; stride *= std::max<int64_t>(t.size(d), 1)) strides[d] = stride;
  return empty_strided(t, t.dim(), t.sizes().data(), strides, raw_dtype(t));
}

// Without channels there is nothing to compute: n becomes 0, and gradients are sums over no samples.
inline Problem problem_of(const FeatureMaps& maps, DType dtype, Variant variant, int64_t flags,
                          const GateFacts& facts) {
  const int64_t n = maps.shape.n(), c = maps.shape.c();
  require_countable("x and its parameters", "numbers for the gates of all samples", {n, c + facts.size()});
  return {c == 0 ? 0 : n, c, maps.shape.s, dtype, maps.layout, variant, flags};
}

}  // namespace eca
