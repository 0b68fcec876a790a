// SPDX-License-Identifier: MIT
// L3. The operators on a GPU: check, plan, allocate, launch, for all variants; registered by register_cuda.cpp.
// Nothing here waits for the device, and memory comes from torch's caching allocator: CUDA graphs can capture calls.
#include "ops_cuda.h"

#include <cstdlib>

#include "kernels.h"

namespace eca {
namespace {

// Pieces of one allocation. First all are taken, then they have addresses.
class Workspace {
 public:
  // An offset for at().
  int64_t take(int64_t bytes) {
    const int64_t at = size_;
    size_ += (bytes + 255) / 256 * 256;
    return at;
  }
  void allocate(const Tensor& like) {
    memory_.emplace(empty_vector(like, size_, aoti_torch_dtype_uint8()));
    data_ = static_cast<char*>(memory_->mutable_data_ptr());
  }
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(data_ + offset);
  }

 private:
  int64_t size_ = 0;
  std::optional<Tensor> memory_;
  char* data_ = nullptr;
};

ParameterView view_of(const Tensor& t, int64_t centre) {
  const int64_t step = centre < 0 ? 1 : t.size(2);
  return {nullptr, dtype_of(t), t.numel() / step, step, std::max<int64_t>(centre, 0)};
}

ParameterView input(const Tensor& t, int64_t centre) {
  ParameterView view = view_of(t, centre);
  view.data = const_cast<void*>(t.const_data_ptr());
  return view;
}

ParameterView output(const Tensor& t, int64_t centre) {
  ParameterView view = view_of(t, centre);
  view.data = t.mutable_data_ptr();
  return view;
}

// The parameters as the kernels read them: in place, in their own dtypes.
template <class A>
struct Parameters {
  Parameters(Variant variant, const ParameterList& tensors, const Tensor& x, int64_t c, int64_t flags, bool backward) {
    require_parameters<A>(tensors, x);
    gate.shape = gate_shape(variant, tensors, c, flags);
    facts = gate_facts(variant, gate.shape);
    gate.needs = facts.needs[backward];
    for (int i = 0; i < kMaxParameters; ++i) {
      const bool few = i < facts.parameters && !facts.parameter[i].has_rows();
      gate.numbers_at[i] = few ? gate.numbers : -1;
      if (few) gate.numbers += facts.parameter[i].count;
      if (i >= facts.parameters || !tensors[i]) continue;
      const Tensor* t = tensors[i];
      if (!t->is_contiguous()) t = &copies.emplace_back(torch::stable::contiguous(*t));
      gate.views[i] = input(*t, centre_tap(variant, flags, *tensors[i], i));
    }
  }

  GateFacts facts;
  GateParameters gate{};
  std::vector<Tensor> copies;
};

[[noreturn]] void refuse_launch(cudaError_t error, const char* kernel, const Request& request, const Plan& plan) {
  const Problem& p = request.problem;
  std::string what = std::string("eca_cuda: ") + variant_name(p.variant) +
                     (request.backward() ? " backward" : " forward") + " of [" + std::to_string(p.n) + ", " +
                     std::to_string(p.c) + ", " + std::to_string(p.s) + "] could not launch " + kernel + " (" +
                     describe(plan) + "): " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    what += "; this build has kernels for " ECA_CUDA_ARCHITECTURES
            ": rebuild with TORCH_CUDA_ARCH_LIST naming this device's compute capability";
  cudaGetLastError();  // an error of ours is not to surface in somebody else's call
  throw std::runtime_error(what);
}

// ECA_CUDA_TWO_PHASE=1: never the one-pass kernels, to compare the two.
bool only_two_phase() {
  static const bool wanted = [] {
    const char* const value = std::getenv("ECA_CUDA_TWO_PHASE");
    return value && std::string(value) == "1";
  }();
  return wanted;
}

template <class... Maps>
Request request_for(const Problem& p, Direction direction, bool residual, const GateFacts& facts,
                    const GateParameters& gate, const Maps&... maps) {
  Request request{p,
                  direction,
                  residual,
                  (... && is_aligned(p, maps)),
                  (... && is_dense(p, maps)),
                  gate.shape.half(),
                  facts.needs[direction == Direction::kBackward],
                  gate.numbers,
                  only_two_phase() ? Choice{-1, 0, 0} : tuned(p, direction)};
  request.batch_invariant = batch_invariance();
  return request;
}

// The kernel of one direction: planned, given memory, launched.
template <class A, class Call>
class Launch {
 public:
  Launch(const OnDeviceOf& device, const Request& request, const GateParameters& gate)
      : device_(device), request_(request), gate_(gate) {
    const Device& facts = device.device();
    plan = make_plan(request_, facts);
    if constexpr (std::is_same_v<A, float>) {
      // Fewer blocks, where a cluster of so many has no room.
      while (plan.path == Path::kOnePass && launch_one_pass(one_pass_args({}), plan.threads, nullptr, Ask::kRoom)) {
        request_.most_blocks = plan.one_pass.blocks - 1;
        plan = make_plan(request_, facts);
      }
    }
  }

  Plan plan;

  // Of a sample, each of which leaves a record.
  int blocks() const { return plan.path == Path::kOnePass ? plan.one_pass.blocks / plan.one_pass.parts : 1; }

  void take(Workspace& workspace) {
    if (plan.path != Path::kTwoPhase) return;
    const Problem& p = request_.problem;
    const int64_t per_channel = p.n * p.c * int64_t{sizeof(A)};
    const int64_t pieces = plan.two_phase.shared.gate < 0 ? std::min(p.n, plan.blocks) : 0;
    counters_ = workspace.take(counter_bytes());
    partial_ = workspace.take(per_channel * plan.two_phase.tiling.blocks);
    gates_ = workspace.take(per_channel);
    shifts_ = workspace.take(request_.backward() ? per_channel : 0);
    memory_ = workspace.take(pieces * plan.two_phase.gate_numbers * int64_t{sizeof(A)});
  }

  void run(const Call& call, const Workspace& workspace) const {
    if constexpr (std::is_same_v<A, float>) {
      if (plan.path == Path::kOnePass)
        require_launched(launch_one_pass(one_pass_args(call), plan.threads, device_.stream(), Ask::kLaunch),
                         request_.backward() ? "eca_backward_kernel" : "eca_forward_kernel");
    }
    if (plan.path != Path::kTwoPhase) return;
    void* const counters = workspace.at<void>(counters_);
    require_launched(cudaMemsetAsync(counters, 0, static_cast<size_t>(counter_bytes()), device_.stream()), "a memset");
    const TwoPhaseArgs<A, Call> args{request_.problem,
                                     call,
                                     plan.two_phase,
                                     gate_,
                                     static_cast<unsigned long long*>(counters),
                                     workspace.at<unsigned>(counters_ + 8),
                                     workspace.at<A>(partial_),
                                     workspace.at<A>(gates_),
                                     workspace.at<A>(shifts_),
                                     workspace.at<A>(memory_)};
    require_launched(launch_two_phase(plan, args, device_.stream()),
                     request_.backward() ? "eca_two_phase_backward_kernel" : "eca_two_phase_forward_kernel");
  }

  void require_launched(cudaError_t error, const char* kernel) const {
    if (error != cudaSuccess) refuse_launch(error, kernel, request_, plan);
  }

 private:
  OnePassArgs<Call> one_pass_args(const Call& call) const { return {request_.problem, call, plan.one_pass, gate_}; }
  int64_t counter_bytes() const { return 8 + (request_.problem.n + 1) / 2 * 8; }

  const OnDeviceOf& device_;
  Request request_;
  const GateParameters& gate_;
  int64_t counters_ = 0, partial_ = 0, gates_ = 0, shifts_ = 0, memory_ = 0;  // in the workspace
};

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                  int64_t flags, OptionalTensor* mean) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags, false);
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
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                      const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags, true);
  const GateFacts& facts = parameters.facts;
  require_like(grad_y, x, "grad_y");
  require_saved<A>(mean, x, y, flags);
  const bool grad_residual = (flags & kGradResidual) != 0;
  BackwardCall call{maps.another(grad_y), maps.x(), {}, maps.out(), {}, mean.const_data_ptr(), {}};
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

  const Problem p = problem_of(maps, dtype_of(x), variant, flags, facts);
  Launch<A, BackwardCall> launch(device,
                                 request_for(p, Direction::kBackward, grad_residual, facts, parameters.gate,
                                             call.grad_y, call.x, call.y, call.grad_x, call.grad_residual),
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

  GradientArgs combine{{}, {}, p.n, launch.blocks(), p.c, call.mean, call.records};
  gradients[0] = maps.finish();
  if (grad_residual) gradients[1] = maps.finish(gradients[1]);
  for (int i = 0; i < facts.parameters; ++i) {
    combine.parameters[i] = facts.parameter[i];
    gradients.push_back(tensors[i] ? empty_gradient(*tensors[i]) : empty_vector(x, 0, raw_dtype(*tensors[0])));
    if (tensors[i]) combine.to[i] = output(gradients.back(), centre_tap(variant, flags, *tensors[i], i));
  }
  // Programmatic where the code that runs is compiled for 9.0, which a cluster or a bulk copy has shown.
  const int threads = std::clamp(device.device().max_threads / 32 * 32, 32, 512);
  const OnePassPlan& one = launch.plan.one_pass;
  const bool programmatic = launch.plan.path == Path::kOnePass && (one.bulk || one.blocks > 1);
  launch.require_launched(launch_parameter_gradients(sizeof(A) == 8, threads, programmatic, combine, device.stream()),
                          "eca_parameter_gradients_kernel");
  return gradients;
}

}  // namespace

Tensor Cuda::forward(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                     int64_t flags, OptionalTensor* mean) {
  return dtype_of(x) == DType::kDouble ? forward_as<double>(variant, x, tensors, residual, flags, mean)
                                       : forward_as<float>(variant, x, tensors, residual, flags, mean);
}

Gradients Cuda::backward(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                         const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
  return dtype_of(x) == DType::kDouble ? backward_as<double>(variant, grad_y, x, mean, y, tensors, flags)
                                       : backward_as<float>(variant, grad_y, x, mean, y, tensors, flags);
}

}  // namespace eca
