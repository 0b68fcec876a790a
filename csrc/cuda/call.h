// SPDX-License-Identifier: MIT
// L3. The parts of an operator's call on a GPU: memory, the parameters as kernels read them, a planned launch. Nothing
// here waits for the device, and memory comes from torch's caching allocator: CUDA graphs can capture calls.
#pragma once
#include <cstdlib>
#include <type_traits>

#include "kernels.h"
#include "ops_cuda.h"

namespace eca {

// Pieces of one allocation: take() all of them, then allocate(), then get their addresses by at().
class Workspace {
 public:
  // Returns an offset for at().
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

inline ParameterView input(const Tensor& t, const Strides& s = {0, 1, 1}) {
  return {const_cast<void*>(t.const_data_ptr()), dtype_of(t), t.numel() / s.taps, s.row, s.step, s.taps};
}

inline ParameterView output(const Tensor& t, const Strides& s = {0, 1, 1}) {
  return {t.mutable_data_ptr(), dtype_of(t), t.numel() / s.taps, s.row, s.step, s.taps};
}

template <class A>
NormParameters norm_parameters(const NormTensors& norm, const Tensor& x, int64_t c) {
  require_norm<A>(norm, x, c);
  const auto view = [](const Tensor* t) { return t ? input(*t) : ParameterView{}; };
  return {view(norm.weight), view(norm.bias), view(norm.mean), view(norm.var), norm.eps};
}

// The parameters as the kernels read them: in place, in their own dtypes.
template <class A>
struct Parameters {
  Parameters(Variant variant, const ParameterList& tensors, const NormTensors* norm, const Tensor& x, int64_t c,
             int64_t flags, bool backward) {
    require_parameters<A>(tensors, x);
    const GateInfo& info = info_of(variant);
    gate.shape = gate_shape(info, tensors, c, flags);
    facts = gate_facts(variant, gate.shape);
    require_gradients(info, facts, tensors, c, flags);
    gate.needs = facts.needs[backward];
    for (int i = 0; i < kMaxParameters; ++i) {
      const bool few = i < facts.parameters && !facts.gradient[i].has_rows();
      gate.numbers_at[i] = few ? gate.numbers : -1;
      if (few) gate.numbers += facts.gradient[i].count;
      if (i >= facts.parameters || !tensors[i]) continue;
      const Tensor* t = tensors[i];
      if (!t->is_contiguous()) t = &copies.emplace_back(torch::stable::contiguous(*t));
      gate.views[i] = input(*t, strides_of(info.parameters[i], c, flags, *t));
    }
    if (norm) gate.norm = norm_parameters<A>(*norm, x, c);
  }

  GateFacts facts;
  GateParameters gate{};
  std::vector<Tensor> copies;
};

[[noreturn]] inline void refuse_launch(cudaError_t error, const char* kernel, const Request& request,
                                       const Plan& plan) {
  const Problem& p = request.problem;
  std::string what = std::string("eca_cuda: ") + info_of(p.variant).name +
                     (request.backward() ? " backward" : " forward") + " of [" + std::to_string(p.n) + ", " +
                     std::to_string(p.c) + ", " + std::to_string(p.s) + "] could not launch " + kernel + " (" +
                     describe(plan) + "): " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    what += "; this build has kernels for " ECA_CUDA_ARCHITECTURES
            ": rebuild with TORCH_CUDA_ARCH_LIST naming this device's compute capability";
  cudaGetLastError();  // clears it, so that no later call reports this error
  throw std::runtime_error(what);
}

// ECA_CUDA_TWO_PHASE=1 excludes the one-pass kernels, to compare the two.
inline bool only_two_phase() {
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

// The kernel of one direction: plans it, takes its memory, launches it.
template <class A, class Call>
class Launch {
 public:
  Launch(const OnDeviceOf& device, const Request& request, const GateParameters& gate)
      : device_(device), request_(request), gate_(gate) {
    const Device& facts = device.device();
    plan = make_plan(request_, facts);
    if constexpr (std::is_same_v<A, float>) {
      // Takes fewer blocks while the device has no room for the cluster.
      while (plan.path == Path::kOnePass && launch_one_pass(one_pass_args({}), plan.threads, nullptr, Ask::kRoom)) {
        request_.most_blocks = plan.one_pass.blocks - 1;
        plan = make_plan(request_, facts);
      }
    }
  }

  Plan plan;

  // Blocks of a sample that write a record each.
  int blocks() const { return plan.path == Path::kOnePass ? plan.one_pass.blocks / plan.one_pass.parts : 1; }

  void take(Workspace& workspace) {
    if (plan.path != Path::kTwoPhase) return;
    const Problem& p = request_.problem;
    const int64_t per_channel = p.n * p.c * int64_t{sizeof(A)};
    const int64_t pieces = plan.two_phase.shared.gate < 0 ? std::min(p.n, plan.blocks) : 0;
    counters_ = workspace.take(counter_bytes());
    partial_ = workspace.take(per_channel * plan.two_phase.tiling.blocks);
    gates_ = workspace.take(per_channel);
    shifts_ = workspace.take(request_.backward() || gate_.norm.var.data ? per_channel : 0);
    memory_ = workspace.take(pieces * plan.two_phase.gate_numbers * int64_t{sizeof(A)});
  }

  void run(const Call& call, const Workspace& workspace) const {
    if constexpr (std::is_same_v<A, float>) {
      if (plan.path == Path::kOnePass)
        require_launched(launch_one_pass(one_pass_args(call), plan.threads, device_.stream(), Ask::kLaunch),
                         request_.backward() ? "eca_backward_kernel" : "eca_forward_kernel");
    }
    if (plan.path == Path::kTwoPhase) run_two_phase(call, workspace);
  }

  void require_launched(cudaError_t error, const char* kernel) const {
    if (error != cudaSuccess) refuse_launch(error, kernel, request_, plan);
  }

 private:
  void run_two_phase(const Call& call, const Workspace& workspace) const {
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

  OnePassArgs<Call> one_pass_args(const Call& call) const { return {request_.problem, call, plan.one_pass, gate_}; }
  int64_t counter_bytes() const { return 8 + (request_.problem.n + 1) / 2 * 8; }

  const OnDeviceOf& device_;
  Request request_;
  const GateParameters& gate_;
  int64_t counters_ = 0, partial_ = 0, gates_ = 0, shifts_ = 0, memory_ = 0;  // offsets in the workspace
};

// Elements per byte of signs: as many as 16 bytes of the map hold.
inline int64_t per_byte(const Tensor& x) { return 16 / item_size(dtype_of(x)); }

// Allocates what backward needs: the means A[N, C] and the signs uint8[N, bytes].
template <class A>
void keep_for_backward(const Tensor& x, const FeatureMaps& maps, int64_t flags, Saved* saved, ForwardCall* call) {
  saved->mean = empty_matrix(x, maps.shape.n(), maps.shape.c(), dtype_of_accumulator<A>());
  saved->signs = empty_signs(x, maps.shape, per_byte(x), flags);
  call->mean = saved->mean->mutable_data_ptr();
  call->signs = signs_of(*saved->signs, true);
}

template <class A>
void keep_norm(const Tensor& x, int64_t c, Saved* saved) {
  saved->norm_mean = empty_vector(x, c, dtype_of_accumulator<A>());
  saved->norm_var = empty_vector(x, c, dtype_of_accumulator<A>());
}

// The maps of a backward pass. Sets gradients to x, which finish() replaces, and the residual's gradient.
inline BackwardCall call_of(const Tensor& grad_y, const Tensor& x, const Saved& saved, int64_t flags, FeatureMaps* maps,
                            Gradients* gradients) {
  require_like(grad_y, x, "grad_y");
  BackwardCall call{maps->another(grad_y), maps->x(), maps->out(), {}, {}, saved.mean->const_data_ptr(), {}};
  if (saved.signs) call.signs = signs_of(*saved.signs, false);
  *gradients = {x, empty_vector(x, 0, raw_dtype(x))};
  if (flags & kGradResidual) call.grad_residual = maps->another_out(&(*gradients)[1]);
  return call;
}

inline void finish(const FeatureMaps& maps, int64_t flags, Gradients* gradients) {
  (*gradients)[0] = maps.finish();
  if (flags & kGradResidual) (*gradients)[1] = maps.finish((*gradients)[1]);
}

// Appends the gradients of the parameters and launches their kernel, which combines `blocks` records of each sample.
template <class A>
cudaError_t combine(const Parameters<A>& parameters, const ParameterList& tensors, const Problem& p, int64_t blocks,
                    const BackwardCall& call, bool programmatic, const OnDeviceOf& device, Gradients* gradients) {
  GradientArgs args{{}, {}, p.n, blocks, p.c, call.mean, call.records};
  for (int i = 0; i < parameters.facts.parameters; ++i) {
    const Tensor* const t = tensors[i];
    args.gradients[i] = parameters.facts.gradient[i];
    gradients->push_back(t ? empty_gradient(*t) : empty_vector(*tensors[0], 0, raw_dtype(*tensors[0])));
    if (t) args.to[i] = output(gradients->back(), strides_of(info_of(p.variant).parameters[i], p.c, p.flags, *t));
  }
  const int threads = std::clamp(device.device().max_threads / 32 * 32, 32, 512);
  return launch_parameter_gradients(sizeof(A) == 8, threads, programmatic, args, device.stream());
}

// norm_cuda.cpp: batch norm with the statistics of x, and the backward pass of batch norm with any statistics.
Tensor normalise(const Tensor& x, const ParameterList& tensors, const NormTensors& norm, const OptionalTensor& residual,
                 int64_t flags, Saved* saved);
Gradients normalise_backward(const Tensor& grad_y, const Tensor& x, const Saved& saved, const ParameterList& tensors,
                             const NormTensors& norm, int64_t flags);

}  // namespace eca
