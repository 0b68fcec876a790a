// SPDX-License-Identifier: MIT
// L3. The operators on the CPU: check, allocate, run, for all variants; registered at the end of this file.
#include "../library.h"
#include "pages.h"
#include "parameters.h"
#include "schedule.h"

namespace eca {
namespace {

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
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                  int64_t flags, OptionalTensor* mean) {
  FeatureMaps maps = maps_of(x);
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  ForwardCall call{maps.x(), {}, maps.out(), nullptr};
  if (residual) {
    require_like(*residual, x, "residual");
    call.residual = maps.another(*residual);
  }
  if (mean) {
    *mean = empty_matrix(x, maps.shape.n(), maps.shape.c(), dtype_of_accumulator<A>());
    call.mean = (*mean)->mutable_data_ptr();
  }
  Problem p = problem_of(maps, dtype_of(x), variant, flags, parameters.facts);
  if (p.s == 0 && !mean) p.n = 0;  // nobody wants anything of them
  run_forward(p, gate_call(parameters, false), call, threads());
  return maps.finish();
}

// Sums the samples' records into the gradient of parameter i, see gates/gate.h.
template <class A>
Tensor parameter_gradient(int i, const Problem& p, const BackwardCall& call, const GateFacts& facts,
                          const Tensor& tensor) {
  const auto combine = kernels().gates[static_cast<int>(p.variant)][sizeof(A) == sizeof(double)].combine;
  const Records& from = call.records;
  const Parameter& parameter = facts.parameter[i];
  const bool of_block = parameter.how == Combine::kBlocks;  // one on a CPU
  const A* record = static_cast<const A*>(of_block ? from.block : from.sample) + parameter.offset;
  const int64_t record_size = of_block ? from.block_size : from.sample_size;
  ParameterOutput<A> output(tensor, centre_tap(p.variant, p.flags, tensor, i));
  A* out = output.data();
  if (!parameter.has_rows()) {
    combine(nullptr, 0, record, record_size, p.n, 0, parameter.count, out);
    return output.tensor();
  }
  const void* values = parameter.how == Combine::kMean ? call.mean : from.field;
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) combine(record + r, record_size, values, p.c, p.n, 0, p.c, out + r * p.c);
  };
  const bool small = tensor.numel() < 32768 / std::max<int64_t>(p.n, 1);
  small ? rows(0, parameter.count) : torch::stable::parallel_for(0, parameter.count, 1, rows);
  return output.tensor();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                      const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
  FeatureMaps maps = maps_of(x);
  const bool grad_residual = (flags & kGradResidual) != 0;
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  require_like(grad_y, x, "grad_y");
  require_saved<A>(mean, x, y, flags);

  const Problem p = problem_of(maps, dtype_of(x), variant, flags, parameters.facts);
  const int64_t of_sample = parameters.facts.sample_record, of_block = parameters.facts.block_record;
  const std::unique_ptr<A[]> memory(new A[p.n * (of_sample + of_block + p.c) + 1]);
  A *const blocks = memory.get() + p.n * of_sample, *const field = blocks + p.n * of_block;
  BackwardCall call{maps.another(grad_y),
                    maps.x(),
                    {},
                    maps.out(),
                    {},
                    mean.const_data_ptr(),
                    {memory.get(), blocks, field, of_sample, of_block}};
  if (y) {
    require_like(*y, x, "y");
    call.y = maps.another(*y);
  }
  Gradients gradients{x, x};  // of x and of the residual, to be replaced
  if (grad_residual) {
    call.grad_residual = maps.another_out(&gradients[1]);
  } else {
    gradients[1] = empty_vector(x, 0, raw_dtype(x));
  }

  run_backward(p, gate_call(parameters, true), call, threads());
  gradients[0] = maps.finish();
  if (grad_residual) gradients[1] = maps.finish(gradients[1]);
  for (int i = 0; i < parameters.facts.parameters; ++i) {
    gradients.push_back(tensors[i] ? parameter_gradient<A>(i, p, call, parameters.facts, *tensors[i])
                                   : empty_vector(x, 0, raw_dtype(*tensors[0])));
  }
  return gradients;
}

struct Cpu {
  static Tensor forward(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                        int64_t flags, OptionalTensor* mean) {
    return dtype_of(x) == DType::kDouble ? forward_as<double>(variant, x, tensors, residual, flags, mean)
                                         : forward_as<float>(variant, x, tensors, residual, flags, mean);
  }
  static Gradients backward(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                            const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
    return dtype_of(x) == DType::kDouble ? backward_as<double>(variant, grad_y, x, mean, y, tensors, flags)
                                         : backward_as<float>(variant, grad_y, x, mean, y, tensors, flags);
  }
};

const Registration<Cpu> registration("CPU");

}  // namespace
}  // namespace eca
