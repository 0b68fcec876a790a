// SPDX-License-Identifier: MIT
// L3. Batch norm followed by ECA: forward with the statistics of x, and backward with any statistics. Each launches
// several kernels (norm.cuh, norm_channels.cu).
#include "call.h"

namespace eca {
namespace {

// Planned like the two-phase kernels, but without tickets.
template <class A, class Call>
class NormLaunch {
 public:
  NormLaunch(const OnDeviceOf& device, const Request& request, const GateParameters& gate)
      : device_(device), request_(request) {
    const Problem& p = request.problem;
    require(p.n > 0 && p.c > 0 && p.s > 0, "x");  // an empty map has no statistics
    plan_two_phase(request, device.device(), &plan_);
    plan_.reason = "batch norm";
    blocks_ = std::min<int64_t>(p.n, 4 * int64_t{device.device().multiprocessors});
    args.problem = p;
    args.plan = plan_.two_phase;
    args.gate_of = gate;
  }

  NormArgs<A, Call> args{};

  // Allocates memory for the kernels and, at *to_records, A[N, records].
  void allocate(const Tensor& like, int64_t records, A** to_records) {
    const Problem& p = request_.problem;
    const bool backward = request_.backward(), pieces = plan_.two_phase.shared.gate < 0;
    const int64_t numbers = p.n * p.c, tiles = numbers * plan_.two_phase.tiling.blocks;
    A** const where[] = {&args.first, &args.second, &args.gate, &args.shift, &args.sum,
                         &args.dot,   &args.slope,  to_records, &args.memory};
    const int64_t counts[] = {tiles,
                              tiles,
                              numbers,
                              numbers,
                              backward ? numbers : 0,
                              backward ? numbers : 0,
                              backward ? p.c : 0,
                              p.n * records,
                              pieces ? blocks_ * plan_.two_phase.gate_numbers : 0};
    int64_t at[std::size(counts)];
    for (size_t i = 0; i < std::size(counts); ++i) at[i] = workspace_.take(counts[i] * int64_t{sizeof(A)});
    workspace_.allocate(like);
    for (size_t i = 0; i < std::size(counts); ++i) *where[i] = workspace_.at<A>(at[i]);
  }

  void run() const {
    const Device& device = device_.device();
    const int threads = device.max_threads / 32 * 32;
    require_launched(launch_norm(Norm::kRead, plan_, args, device.multiprocessors, device_.stream()));
    require_launched(launch_norm_channels(plan_, args, threads, blocks_, device_.stream()));
    require_launched(launch_norm(Norm::kWrite, plan_, args, device.multiprocessors, device_.stream()));
  }

  void require_launched(cudaError_t error) const {
    if (error != cudaSuccess) refuse_launch(error, "a kernel of batch norm", request_, plan_);
  }

 private:
  const OnDeviceOf& device_;
  const Request request_;
  Plan plan_{};
  int64_t blocks_;  // of the kernel that computes gates
  Workspace workspace_;
};

template <class A>
Tensor normalise_as(const Tensor& x, const ParameterList& tensors, const NormTensors& norm,
                    const OptionalTensor& residual, int64_t flags, Saved* saved) {
  require(saved, "norm_mean");  // only a forward that saves computes statistics
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  const int64_t c = maps.shape.c();
  Parameters<A> parameters(kEca, tensors, &norm, x, c, flags, false);
  ForwardCall call{maps.x(), {}, maps.out(), nullptr, {}};
  if (residual) {
    require_like(*residual, x, "residual");
    call.residual = maps.another(*residual);
  }
  keep_for_backward<A>(x, maps, flags, saved, &call);
  keep_norm<A>(x, c, saved);
  parameters.gate.norm.mean = output(*saved->norm_mean);
  parameters.gate.norm.var = output(*saved->norm_var);
  const Problem p = problem_of(maps, dtype_of(x), kEca, flags, parameters.facts);
  NormLaunch<A, ForwardCall> launch(device,
                                    request_for(p, Direction::kForward, residual.has_value(), parameters.facts,
                                                parameters.gate, call.x, call.residual, call.y),
                                    parameters.gate);
  A* no_records = nullptr;
  launch.allocate(x, 0, &no_records);
  launch.args.call = call;
  launch.args.norm_mean = static_cast<A*>(parameters.gate.norm.mean.data);
  launch.args.norm_var = static_cast<A*>(parameters.gate.norm.var.data);
  launch.run();
  return maps.finish();
}

template <class A>
Gradients normalise_backward_as(const Tensor& grad_y, const Tensor& x, const Saved& saved, const ParameterList& tensors,
                                const NormTensors& norm, int64_t flags) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  const Parameters<A> parameters(kEca, tensors, &norm, x, maps.shape.c(), flags, true);
  require_saved<A>(saved, x, maps.shape, per_byte(x), flags);
  Gradients gradients;
  BackwardCall call = call_of(grad_y, x, saved, flags, &maps, &gradients);
  const Problem p = problem_of(maps, dtype_of(x), kEca, flags, parameters.facts);
  NormLaunch<A, BackwardCall> launch(
      device,
      request_for(p, Direction::kBackward, (flags & kGradResidual) != 0, parameters.facts, parameters.gate, call.grad_y,
                  call.x, call.grad_x, call.grad_residual),
      parameters.gate);
  A* records = nullptr;
  launch.allocate(x, parameters.facts.block_record, &records);
  call.records = {nullptr, records, nullptr, 0, parameters.facts.block_record};
  launch.args.call = call;
  Gradients of_norm;
  ParameterView* const views[] = {&launch.args.grad_weight, &launch.args.grad_bias};
  for (const Tensor* t : {norm.weight, norm.bias}) {
    of_norm.push_back(t ? empty_gradient(*t) : empty_vector(x, 0, raw_dtype(x)));
    if (t) *views[of_norm.size() - 1] = output(of_norm.back());
  }
  launch.run();
  finish(maps, flags, &gradients);
  launch.require_launched(combine(parameters, tensors, p, 1, call, false, device, &gradients));
  gradients.insert(gradients.end(), of_norm.begin(), of_norm.end());
  return gradients;
}

}  // namespace

Tensor normalise(const Tensor& x, const ParameterList& tensors, const NormTensors& norm, const OptionalTensor& residual,
                 int64_t flags, Saved* saved) {
  return dtype_of(x) == DType::kDouble ? normalise_as<double>(x, tensors, norm, residual, flags, saved)
                                       : normalise_as<float>(x, tensors, norm, residual, flags, saved);
}

Gradients normalise_backward(const Tensor& grad_y, const Tensor& x, const Saved& saved, const ParameterList& tensors,
                             const NormTensors& norm, int64_t flags) {
  return dtype_of(x) == DType::kDouble ? normalise_backward_as<double>(grad_y, x, saved, tensors, norm, flags)
                                       : normalise_backward_as<float>(grad_y, x, saved, tensors, norm, flags);
}

}  // namespace eca
