// SPDX-License-Identifier: MIT
// L3. The operators on the CPU: check, allocate, run, for all variants; registered at the end of this file.
#include "../library.h"
#include "pages.h"
#include "parameters.h"
#include "schedule.h"

namespace eca {
namespace {

constexpr int64_t kSignsPerByte = 8;

Parallel threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
            check(torch_parallel_for(0, count, 1, body, context), "a parallel loop");
          }};
}

Tensor output_as(const Tensor& dense) {
  const Tensor output = empty_as(dense);
  prefer_huge_pages(output.mutable_data_ptr(), output.numel() * item_size(dtype_of(output)));
  return output;
}

FeatureMaps maps_of(const Tensor& x) {
  require(x.is_cpu(), "x");
  return FeatureMaps(x, output_as);
}

template <class A>
GateCall gate_call(const Parameters<A>& parameters, bool backward) {
  const GateArgs<A>& args = parameters.args;
  return {&args, gate_workspace(args.shape, parameters.facts.needs[backward])};
}

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const NormTensors* norm,
                  const OptionalTensor& residual, int64_t flags, Saved* saved) {
  require(!norm || norm->mean || saved, "norm_mean");  // only a forward that saves computes statistics
  FeatureMaps maps = maps_of(x);
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  std::optional<NormParameters<A>> normed;
  if (norm) normed.emplace(*norm, x, maps.shape.c());
  ForwardCall call{maps.x(), {}, maps.out(), nullptr, {}};
  if (residual) {
    require_like(*residual, x, "residual");
    call.residual = maps.another(*residual);
  }
  if (saved) {
    saved->mean = empty_matrix(x, maps.shape.n(), maps.shape.c(), dtype_of_accumulator<A>());
    saved->signs = empty_signs(x, maps.shape, kSignsPerByte, flags);
    call.mean = saved->mean->mutable_data_ptr();
    call.signs = signs_of(*saved->signs, true);
    if (norm) {
      saved->norm_mean = normed->mean;
      saved->norm_var = normed->var;
    }
  }
  Problem p = problem_of(maps, dtype_of(x), variant, flags, parameters.facts);
  if (p.s == 0 && !saved) p.n = 0;  // y is empty, and nothing else is wanted
  const GateCall gate = gate_call(parameters, false);
  if (norm && !norm->mean) {
    run_norm_forward<A>(p, gate, call, normed->numbers, threads());
  } else {
    run_forward<A>(p, gate, call, norm ? &normed->numbers : nullptr, threads());
  }
  return maps.finish();
}

// Sums the samples' records into the gradient of parameter i, see gates/gate.h.
template <class A>
Tensor parameter_gradient(int i, const Problem& p, const BackwardCall& call, const GateFacts& facts,
                          const Tensor& tensor) {
  const auto combine = kernels().gates[static_cast<int>(p.variant)][sizeof(A) == sizeof(double)].combine;
  const Records& from = call.records;
  const Gradient& parameter = facts.gradient[i];
  const bool of_block = parameter.how == Combine::kBlocks;  // one on a CPU
  const A* record = static_cast<const A*>(of_block ? from.block : from.sample) + parameter.offset;
  const int64_t record_size = of_block ? from.block_size : from.sample_size;
  ParameterOutput<A> output(tensor, strides_of(info_of(p.variant).parameters[i], p.c, p.flags, tensor), p.c);
  A* out = output.data();
  if (!parameter.has_rows()) {
    combine(nullptr, 0, record, record_size, p.n, 0, parameter.count, out);
    return output.tensor();
  }
  const void* values = parameter.how == Combine::kMean ? call.mean : from.channel;
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) combine(record + r, record_size, values, p.c, p.n, 0, p.c, out + r * p.c);
  };
  const bool small = tensor.numel() < 32768 / std::max<int64_t>(p.n, 1);
  small ? rows(0, parameter.count) : torch::stable::parallel_for(0, parameter.count, 1, rows);
  return output.tensor();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Saved& saved,
                      const ParameterList& tensors, const NormTensors* norm, int64_t flags) {
  FeatureMaps maps = maps_of(x);
  const int64_t c = maps.shape.c();
  const bool grad_residual = (flags & kGradResidual) != 0;
  const Parameters<A> parameters(variant, tensors, x, c, flags);
  require_like(grad_y, x, "grad_y");
  require_saved<A>(saved, x, maps.shape, kSignsPerByte, flags);

  const Problem p = problem_of(maps, dtype_of(x), variant, flags, parameters.facts);
  const int64_t of_sample = parameters.facts.sample_record, of_block = parameters.facts.block_record;
  const std::unique_ptr<A[]> memory(new A[p.n * (of_sample + of_block + p.c) + 2 * c + 1]);
  A *const blocks = memory.get() + p.n * of_sample, *const channels = blocks + p.n * of_block;
  BackwardCall call{maps.another(grad_y),
                    maps.x(),
                    maps.out(),
                    {},
                    {},
                    saved.mean->const_data_ptr(),
                    {memory.get(), blocks, channels, of_sample, of_block}};
  if (saved.signs) call.signs = signs_of(*saved.signs, false);
  Gradients gradients{x, x};  // of x and of the residual, to be replaced
  if (grad_residual) {
    call.grad_residual = maps.another_out(&gradients[1]);
  } else {
    gradients[1] = empty_vector(x, 0, raw_dtype(x));
  }

  const GateCall gate = gate_call(parameters, true);
  A* const of_norm = channels + p.n * p.c;  // gradients of its weight and bias
  if (norm) {
    const NormParameters<A> normed(*norm, x, c);
    run_norm_backward<A>(p, gate, call, normed.numbers, of_norm, of_norm + c, threads());
  } else {
    run_backward<A>(p, gate, call, threads());
  }
  gradients[0] = maps.finish();
  if (grad_residual) gradients[1] = maps.finish(gradients[1]);
  const Tensor absent = empty_vector(x, 0, raw_dtype(*tensors[0]));
  for (int i = 0; i < parameters.facts.parameters; ++i) {
    gradients.push_back(tensors[i] ? parameter_gradient<A>(i, p, call, parameters.facts, *tensors[i]) : absent);
  }
  if (!norm) return gradients;
  for (const Tensor* t : {norm->weight, norm->bias}) {
    gradients.push_back(absent);
    if (!t) continue;
    ParameterOutput<A> output(*t, {c, 1, 1}, c);
    std::copy_n(of_norm + (t == norm->bias) * c, c, output.data());
    gradients.back() = output.tensor();
  }
  return gradients;
}

struct Cpu {
  static Tensor forward(Variant variant, const Tensor& x, const ParameterList& tensors, const NormTensors* norm,
                        const OptionalTensor& residual, int64_t flags, Saved* saved) {
    return dtype_of(x) == DType::kDouble ? forward_as<double>(variant, x, tensors, norm, residual, flags, saved)
                                         : forward_as<float>(variant, x, tensors, norm, residual, flags, saved);
  }
  static Gradients backward(Variant variant, const Tensor& grad_y, const Tensor& x, const Saved& saved,
                            const ParameterList& tensors, const NormTensors* norm, int64_t flags) {
    return dtype_of(x) == DType::kDouble ? backward_as<double>(variant, grad_y, x, saved, tensors, norm, flags)
                                         : backward_as<float>(variant, grad_y, x, saved, tensors, norm, flags);
  }
};

const Registration<Cpu> registration("CPU");

}  // namespace
}  // namespace eca
