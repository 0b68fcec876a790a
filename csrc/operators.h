// SPDX-License-Identifier: MIT
// L3. The operators <name>_infer, <name>_forward and <name>_backward of every gate, and batch_norm_<name>_... of the
// eca gate: their schemas and one boxed function for each direction, derived from the gate's description
// (gates/gate.h). They are private: the differentiable functions are in eca_cuda/variants/. A backend offers
//   forward (variant, x, parameters, norm or null, residual, flags, saved or null) -> y
//   backward(variant, grad_y, x, saved, parameters, norm or null, flags)
//                                         -> {grad_x, grad_residual, gradients of the parameters, of the norm's two}
//
// y = relu(x * gate + residual) [N, C, *spatial]; mean is [N, C] in the accumulator's dtype; signs (problem.h) is uint8
// [N, bytes], empty without kRelu. Backward takes signs if and only if flags has kRelu; grad_residual is empty
// unless flags has kGradResidual; the gradient of an absent parameter is empty. With batch norm x is normalised
// first, by norm_mean and norm_var [C]; forward without them computes the statistics of x and returns these, biased, in
// the accumulator's dtype. mean is still that of x.
#pragma once
#include <array>
#include <string>
#include <type_traits>
#include <vector>

#include "gates/registry.h"
#include "tensors.h"

namespace eca {

// In the order of the operator's arguments; null where absent.
using ParameterList = std::array<const Tensor*, kMaxParameters>;
using Gradients = std::vector<Tensor>;

// The arguments of batch norm, [C] each; null where absent. Without mean and var, forward computes those of x.
struct NormTensors {
  const Tensor *weight, *bias, *mean, *var;
  double eps;
};

// What forward saves for backward; norm_mean and norm_var only with batch norm.
struct Saved {
  OptionalTensor mean, signs, norm_mean, norm_var;
};

// The arguments of a boxed call, taken in the order of its schema, and its results.
class Stack {
 public:
  explicit Stack(StableIValue* values) : values_(values) {}
  template <class T>
  T take() {
    return torch::stable::detail::to<T>(values_[taken_++]);
  }
  void put(const Tensor& t) { values_[put_++] = torch::stable::detail::from(t); }

 private:
  StableIValue* values_;
  int taken_ = 0, put_ = 0;
};

inline const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

// The parameters of a gate.
template <Variant V>
class Operands {
 public:
  explicit Operands(Stack& stack) {
    const GateInfo& gate = info_of(V);
    for (int i = 0; i < gate.count; ++i) {
      tensors_[i] = gate.parameters[i].optional ? stack.take<OptionalTensor>() : stack.take<Tensor>();
      parameters[i] = pointer(tensors_[i]);
    }
  }

  ParameterList parameters{};
  const NormTensors* norm() const { return nullptr; }
  void save(Saved*) const {}

 private:
  OptionalTensor tensors_[kMaxParameters];
};

// The parameters of a gate, then those of the batch norm before it.
template <Variant V>
class NormOperands : public Operands<V> {
 public:
  explicit NormOperands(Stack& stack) : Operands<V>(stack) {
    for (OptionalTensor& t : tensors_) t = stack.take<OptionalTensor>();
    norm_ = {pointer(tensors_[0]), pointer(tensors_[1]), pointer(tensors_[2]), pointer(tensors_[3]),
             stack.take<double>()};
  }

  const NormTensors* norm() const { return &norm_; }
  void save(Saved* saved) const {
    saved->norm_mean = tensors_[2];
    saved->norm_var = tensors_[3];
  }

 private:
  OptionalTensor tensors_[4];
  NormTensors norm_{};
};

template <class Backend, Variant V, bool kNorm>
struct Operators {
  using Given = std::conditional_t<kNorm, NormOperands<V>, Operands<V>>;

  static void infer(StableIValue* values, uint64_t, uint64_t) {
    Stack stack(values);
    const auto x = stack.take<Tensor>();
    const Given operands(stack);
    const auto residual = stack.take<OptionalTensor>();
    const auto flags = stack.take<int64_t>();
    stack.put(Backend::forward(V, x, operands.parameters, operands.norm(), residual, flags, nullptr));
  }

  static void forward(StableIValue* values, uint64_t, uint64_t) {
    Stack stack(values);
    const auto x = stack.take<Tensor>();
    const Given operands(stack);
    const auto residual = stack.take<OptionalTensor>();
    const auto flags = stack.take<int64_t>();
    Saved saved;
    stack.put(Backend::forward(V, x, operands.parameters, operands.norm(), residual, flags, &saved));
    stack.put(*saved.mean);
    if (kNorm) stack.put(*saved.norm_mean);
    if (kNorm) stack.put(*saved.norm_var);
    stack.put(*saved.signs);
  }

  static void backward(StableIValue* values, uint64_t, uint64_t) {
    Stack stack(values);
    const auto grad_y = stack.take<Tensor>(), x = stack.take<Tensor>();
    Saved saved{stack.take<Tensor>(), stack.take<OptionalTensor>(), {}, {}};
    const Given operands(stack);
    operands.save(&saved);
    const auto flags = stack.take<int64_t>();
    for (const Tensor& gradient : Backend::backward(V, grad_y, x, saved, operands.parameters, operands.norm(), flags))
      stack.put(gradient);
  }
};

// "batch_norm_" before the name of a gate's operators with batch norm.
inline std::string operator_name(const GateInfo& gate, bool norm, const char* direction) {
  return std::string(norm ? "batch_norm_" : "") + gate.name + "_" + direction;
}

template <class Library>
void define_operators_of(Library& m, const GateInfo& gate, bool norm) {
  std::string parameters, gradients = "Tensor grad_x, Tensor grad_residual";
  for (int i = 0; i < gate.count; ++i) {
    parameters += std::string(gate.parameters[i].optional ? ", Tensor? " : ", Tensor ") + gate.parameters[i].name;
    gradients += std::string(", Tensor grad_") + gate.parameters[i].name;
  }
  if (norm) {
    parameters += ", Tensor? norm_weight, Tensor? norm_bias, Tensor? norm_mean, Tensor? norm_var, float eps";
    gradients += ", Tensor grad_norm_weight, Tensor grad_norm_bias";
  }
  const std::string forward = "(Tensor x" + parameters + ", Tensor? residual, int flags) -> ";
  const std::string saved = norm ? "Tensor mean, Tensor norm_mean, Tensor norm_var" : "Tensor mean";
  const auto define = [&](const char* direction, const std::string& schema) {
    m.def((operator_name(gate, norm, direction) + schema).c_str());
  };
  define("infer", forward + "Tensor");
  define("forward", forward + "(Tensor y, " + saved + ", Tensor signs)");
  define("backward",
         "(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs" + parameters + ", int flags) -> (" + gradients + ")");
}

template <class Library>
void define_operators(Library& m) {
  for (const GateInfo& gate : Gates::kInfo) define_operators_of(m, gate, false);
  define_operators_of(m, info_of(kEca), true);
}

template <class Backend, Variant V, bool kNorm, class Library>
void implement_operators_of(Library& m) {
  using Ops = Operators<Backend, V, kNorm>;
  const auto name = [](const char* direction) { return operator_name(info_of(V), kNorm, direction); };
  m.impl(name("infer").c_str(), &Ops::infer);
  m.impl(name("forward").c_str(), &Ops::forward);
  m.impl(name("backward").c_str(), &Ops::backward);
}

template <class Backend, int V = 0, class Library>
void implement(Library& m) {
  implement_operators_of<Backend, static_cast<Variant>(V), false>(m);
  if constexpr (V + 1 < kVariants) {
    implement<Backend, V + 1>(m);
  } else {
    implement_operators_of<Backend, kEca, true>(m);
  }
}

}  // namespace eca
