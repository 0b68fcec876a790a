// SPDX-License-Identifier: MIT
// L3. The operators on a GPU: check, plan, allocate, launch, for all variants; registered by register_cuda.cpp.
#include "ops_cuda.h"

#include "call.h"

namespace eca {
namespace {

template <class A>
void keep_statistics(const NormTensors& norm, const Tensor& x, int64_t c, Saved* saved) {
  keep_norm<A>(x, c, saved);
  torch::stable::copy_(*saved->norm_mean, *norm.mean);
  torch::stable::copy_(*saved->norm_var, *norm.var);
}

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const NormTensors* norm,
                  const OptionalTensor& residual, int64_t flags, Saved* saved) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  Parameters<A> parameters(variant, tensors, norm, x, maps.shape.c(), flags, false);
  if (norm) parameters.gate.needs.arrays = parameters.facts.needs[0].arrays += kNormArrays;
  ForwardCall call{maps.x(), {}, maps.out(), nullptr, {}};
  if (residual) {
    require_like(*residual, x, "residual");
    call.residual = maps.another(*residual);
  }
  if (saved) keep_for_backward<A>(x, maps, flags, saved, &call);
  if (saved && norm) keep_statistics<A>(*norm, x, maps.shape.c(), saved);
  Problem p = problem_of(maps, dtype_of(x), variant, flags, parameters.facts);
  if (p.s == 0 && !saved) p.n = 0;  // y is empty, and nothing else is wanted
  Launch<A, ForwardCall> launch(device,
                                request_for(p, Direction::kForward, residual.has_value(), parameters.facts,
                                            parameters.gate, call.x, call.residual, call.y),
                                parameters.gate);
  Workspace workspace;
  launch.take(workspace);
  if (launch.plan.path == Path::kTwoPhase) workspace.allocate(x);
  launch.run(call, workspace);
  return maps.finish();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Saved& saved,
                      const ParameterList& tensors, int64_t flags) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  const Parameters<A> parameters(variant, tensors, nullptr, x, maps.shape.c(), flags, true);
  const GateFacts& facts = parameters.facts;
  require_saved<A>(saved, x, maps.shape, per_byte(x), flags);
  Gradients gradients;
  BackwardCall call = call_of(grad_y, x, saved, flags, &maps, &gradients);

  const Problem p = problem_of(maps, dtype_of(x), variant, flags, facts);
  Launch<A, BackwardCall> launch(device,
                                 request_for(p, Direction::kBackward, (flags & kGradResidual) != 0, facts,
                                             parameters.gate, call.grad_y, call.x, call.grad_x, call.grad_residual),
                                 parameters.gate);
  const int64_t number = sizeof(A);
  Workspace workspace;
  launch.take(workspace);
  const int64_t of_samples = workspace.take(p.n * facts.sample_record * number);
  const int64_t of_blocks = workspace.take(p.n * launch.blocks() * facts.block_record * number);
  const int64_t of_channels = workspace.take(p.n * p.c * number);
  workspace.allocate(x);
  call.records = {workspace.at<A>(of_samples), workspace.at<A>(of_blocks), workspace.at<A>(of_channels),
                  facts.sample_record, facts.block_record};
  launch.run(call, workspace);

  finish(maps, flags, &gradients);
  // Programmatic launches need code for 9.0, which clusters and bulk copies need, too.
  const OnePassPlan& one = launch.plan.one_pass;
  const bool programmatic = launch.plan.path == Path::kOnePass && (one.bulk || one.blocks > 1);
  launch.require_launched(combine(parameters, tensors, p, launch.blocks(), call, programmatic, device, &gradients),
                          "eca_parameter_gradients_kernel");
  return gradients;
}

}  // namespace

Tensor Cuda::forward(Variant variant, const Tensor& x, const ParameterList& tensors, const NormTensors* norm,
                     const OptionalTensor& residual, int64_t flags, Saved* saved) {
  if (norm && !norm->mean) return normalise(x, tensors, *norm, residual, flags, saved);
  return dtype_of(x) == DType::kDouble ? forward_as<double>(variant, x, tensors, norm, residual, flags, saved)
                                       : forward_as<float>(variant, x, tensors, norm, residual, flags, saved);
}

Gradients Cuda::backward(Variant variant, const Tensor& grad_y, const Tensor& x, const Saved& saved,
                         const ParameterList& tensors, const NormTensors* norm, int64_t flags) {
  if (norm) return normalise_backward(grad_y, x, saved, tensors, *norm, flags);
  return dtype_of(x) == DType::kDouble ? backward_as<double>(variant, grad_y, x, saved, tensors, flags)
                                       : backward_as<float>(variant, grad_y, x, saved, tensors, flags);
}

}  // namespace eca
