// SPDX-License-Identifier: MIT
// L3. The operators on a GPU: check, plan, allocate, launch, for all variants; registered by register_cuda.cpp.
// Nothing here waits for the device, and all memory comes from torch's caching allocator, so calls can be captured in a
// CUDA graph.
#include "ops_cuda.h"

#include <cstdlib>

#include "../plan/tuning.h"
#include "parameters.h"
#include "resident.h"
#include "two_phase.h"

namespace eca {
namespace {

// Pieces of one allocation. First all are taken, then they have addresses.
class Workspace {
 public:
  // An offset for place().
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

// The parameters where the kernels find them: those of the accumulator's type in place, the others to be widened.
template <class A>
class Parameters {
 public:
  Parameters(Variant variant, const ParameterList& tensors, const Tensor& x, int64_t c, int64_t flags) {
    require_parameters<A>(tensors, x);
    args = gate_arguments<A>(variant, tensors, c, flags);
    facts = gate_facts(variant, args);
    for (int i = 0; i < facts.parameters; ++i) {
      if (!tensors[i]) continue;
      const Tensor& t = *tensors[i];
      dense_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
      views[i] = view(dense_.back(), centre_tap(variant, flags, t, i));
      if (holds<A>(t) && views[i].step == 1) args.parameters[i] = static_cast<const A*>(views[i].data);
    }
  }

  static ParameterView view(const Tensor& t, int64_t centre) {
    const int64_t step = centre < 0 ? 1 : t.size(2);
    return {t.data_ptr(), dtype_of(t), t.numel() / step, step, std::max<int64_t>(centre, 0)};
  }

  // Takes and then fills in the places of what must be widened; whether there is anything.
  void take(Workspace& workspace) {
    for (int i = 0; i < facts.parameters; ++i)
      if (views[i].data && !args.parameters[i]) offsets_[i] = workspace.take(views[i].count * int64_t{sizeof(A)});
  }
  bool place(const Workspace& workspace, WidenArgs& widen) {
    bool any = false;
    for (int i = 0; i < facts.parameters; ++i) {
      if (!views[i].data || args.parameters[i]) continue;
      widen.from[i] = views[i];
      widen.to[i] = workspace.at<A>(offsets_[i]);
      args.parameters[i] = workspace.at<A>(offsets_[i]);
      any = true;
    }
    return any;
  }

  GateArgs<A> args;
  GateFacts facts;
  ParameterView views[kMaxParameters] = {};

 private:
  std::vector<Tensor> dense_;
  int64_t offsets_[kMaxParameters] = {};
};

[[noreturn]] void refuse_launch(cudaError_t error, const char* kernel, const Request& request,
                                const std::string& plan) {
  const Problem& p = request.problem;
  const char* const direction = request.direction == Direction::kForward ? "forward" : "backward";
  std::string what = std::string("eca_cuda: ") + variant_name(p.variant) + " " + direction + " of [" +
                     std::to_string(p.n) + ", " + std::to_string(p.c) + ", " + std::to_string(p.s) +
                     "] could not launch " + kernel + " (" + plan + "): " + cudaGetErrorString(error);
  if (error == cudaErrorNoKernelImageForDevice)
    what += "; this build has kernels for " ECA_CUDA_ARCHITECTURES
            ": rebuild with TORCH_CUDA_ARCH_LIST naming this device's compute capability";
  cudaGetLastError();  // an error of ours is not to surface in somebody else's call
  throw std::runtime_error(what);
}

std::string describe(const char* text) { return text; }

// The plan is described only if there is something to say.
template <class P>
void require_launched(cudaError_t error, const char* kernel, const Request& request, const P& plan) {
  if (error != cudaSuccess) refuse_launch(error, kernel, request, describe(plan));
}

// ECA_CUDA_TWO_PHASE=1: never the resident kernels, to compare the two.
bool resident_is_allowed() {
  static const bool allowed = [] {
    const char* const value = std::getenv("ECA_CUDA_TWO_PHASE");
    return !value || std::string(value) != "1";
  }();
  return allowed;
}

// A call on its way: what both directions share. `more` takes memory of a workspace, `place` then completes the call.
template <class A, class Call>
struct Launch {
  const OnDeviceOf& device;
  const Tensor& x;
  Parameters<A>& parameters;
  Request request;
  bool dense;  // all maps
  Device facts = device.device();
  cudaStream_t stream = device.stream();

  // Of the small kernels before and after the large one.
  int small_threads() const { return std::clamp(facts.max_threads / 32 * 32, 32, 256); }

  template <class More, class Place>
  void run(const Call& call, More more, Place place) {
    if (request.problem.n == 0 || request.problem.c == 0) {
      Workspace workspace;
      more(workspace);
      workspace.allocate(x);
      place(workspace, call);
      return;
    }
    if constexpr (std::is_same_v<A, float>) {
      if (resident_is_allowed() && run_resident(call, more, place)) return;
    }
    run_two_phase(call, more, place);
  }

 private:
  template <class P>
  void widen(WidenArgs& args, const P& plan) {
    require_launched(launch_widen(sizeof(A) == 8, small_threads(), args, stream), "widen_parameters", request, plan);
  }

  // Whether it could be launched: not where samples don't fit, or clusters have no room; then smaller ones may have.
  template <class More, class Place>
  bool run_resident(const Call& call, More more, Place place) {
    const Problem& p = request.problem;
    const GateFacts& gate = parameters.facts;
    ResidentRequest wanted{request, dense, gate.exchanges[request.direction == Direction::kBackward], gate.weights,
                           tuned(request)};
    while (wanted.most_ranks > 0) {
      const ResidentPlan plan = make_resident_plan(wanted, facts);
      if (!plan.possible) return false;
      ResidentArgs<A, Call> args{p, call, plan, parameters.args};
      if (launch_resident(args, stream, Ask::kRoom) != cudaSuccess) {
        wanted.most_ranks = plan.ranks - 1;
        continue;
      }
      Workspace workspace;
      parameters.take(workspace);
      more(workspace);
      workspace.allocate(x);
      WidenArgs widened{};
      Parameters<A> placed = parameters;
      if (placed.place(workspace, widened)) widen(widened, plan);
      args.call = place(workspace, call);
      args.gate_args = placed.args;
      require_launched(launch_resident(args, stream, Ask::kLaunch), "resident", request, plan);
      return true;
    }
    return false;
  }

  template <class More, class Place>
  void run_two_phase(const Call& call, More more, Place place) {
    const Problem& p = request.problem;
    const Plan plan = make_plan(request, facts);
    const bool backward = request.direction == Direction::kBackward;
    const int64_t counter_bytes = 8 + (p.n + 1) / 2 * 8, per_channel = p.n * p.c * int64_t{sizeof(A)};
    const int64_t pieces = plan.shared.gate < 0 ? std::min(p.n, plan.blocks) : 0;
    Workspace workspace;
    const int64_t counters = workspace.take(counter_bytes);
    const int64_t partial = workspace.take(per_channel * plan.tiling.blocks);
    const int64_t mean = workspace.take(backward ? 0 : per_channel);
    const int64_t gate = workspace.take(per_channel);
    const int64_t shift = workspace.take(backward ? per_channel : 0);
    const int64_t memory = workspace.take(pieces * plan.gate_numbers * int64_t{sizeof(A)});
    parameters.take(workspace);
    more(workspace);
    workspace.allocate(x);

    WidenArgs widened{};
    parameters.place(workspace, widened);
    widened.counters = workspace.at<void>(counters);
    widened.counter_bytes = counter_bytes;
    TwoPhaseArgs<A, Call> args{};
    args.problem = p;
    args.call = place(workspace, call);
    args.tiling = plan.tiling;
    args.shared = plan.shared;
    args.lanes = plan.lanes;
    args.tickets = plan.tickets;
    args.lag = plan.lag;
    args.gate_args = parameters.args;
    args.gate_numbers = plan.gate_numbers;
    args.next_ticket = workspace.at<unsigned long long>(counters);
    args.arrived = workspace.at<unsigned>(counters + 8);
    args.partial = workspace.at<A>(partial);
    args.mean = workspace.at<A>(mean);
    if constexpr (std::is_same_v<Call, ForwardCall>) {
      if (call.mean) args.mean = static_cast<A*>(call.mean);
    }
    args.gate = workspace.at<A>(gate);
    args.shift = workspace.at<A>(shift);
    args.memory = workspace.at<A>(memory);
    widen(widened, plan);
    require_launched(launch_two_phase(plan, args, stream), "two_phase", request, plan);
  }
};

template <class... Maps>
int64_t common_alignment(const Problem& p, const Maps&... maps) {
  return std::min({alignment_of(p, maps)...});
}

template <class... Maps>
bool are_dense(const Problem& p, const Maps&... maps) {
  return (... && (!maps.data || is_dense(p, maps)));
}

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                  int64_t flags, OptionalTensor* mean) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  ForwardCall call{maps.x(), {}, maps.out(), nullptr};
  if (residual) {
    require_like(*residual, x, "residual");
    call.residual = maps.another(*residual);
  }
  if (mean) {
    *mean = empty_matrix(x, maps.shape.n(), maps.shape.c(), dtype_of_accumulator<A>());
    call.mean = (*mean)->mutable_data_ptr();
  }
  const Problem p = problem_of(maps, dtype_of(x), variant, flags);
  const int64_t alignment = common_alignment(p, call.x, call.residual, call.y);
  Launch<A, ForwardCall> launch{device,
                                x,
                                parameters,
                                {p, Direction::kForward, residual.has_value(), alignment, parameters.args.kernel_size,
                                 parameters.facts.scratch_size},
                                are_dense(p, call.x, call.residual, call.y)};
  launch.run(call, [](Workspace&) {}, [](const Workspace&, ForwardCall complete) { return complete; });
  return maps.finish();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                      const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
  const OnDeviceOf device(x);
  FeatureMaps maps(x, empty_as);
  Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  require_like(grad_y, x, "grad_y");
  require_saved<A>(mean, x, y, flags);
  const bool grad_residual = (flags & kGradResidual) != 0;
  BackwardCall call{maps.another(grad_y),        maps.x(), {}, maps.out(), {}, mean.const_data_ptr(), nullptr, nullptr,
                    parameters.facts.record_size};
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

  const Problem p = problem_of(maps, dtype_of(x), variant, flags);
  const int64_t alignment = common_alignment(p, call.grad_y, call.x, call.y, call.grad_x, call.grad_residual);
  Launch<A, BackwardCall> launch{
      device,
      x,
      parameters,
      {p, Direction::kBackward, grad_residual, alignment, parameters.args.kernel_size, parameters.facts.scratch_size},
      are_dense(p, call.grad_y, call.x, call.y, call.grad_x, call.grad_residual)};
  int64_t record = 0, field = 0;
  CombineArgs combine{};
  std::optional<Workspace> kept;
  launch.run(
      call,
      [&](Workspace& workspace) {
        record = workspace.take(p.n * call.record_size * int64_t{sizeof(A)});
        field = workspace.take(p.n * p.c * int64_t{sizeof(A)});
      },
      [&](const Workspace& workspace, BackwardCall complete) {
        combine.record = complete.record = workspace.at<A>(record);
        combine.field = complete.field = workspace.at<A>(field);
        kept = workspace;
        return complete;
      });

  combine.samples = p.c == 0 ? 0 : p.n;
  combine.channels = p.c;
  combine.mean = call.mean;
  combine.record_size = call.record_size;
  gradients[0] = maps.finish();
  if (grad_residual) gradients[1] = maps.finish(gradients[1]);
  for (int i = 0; i < parameters.facts.parameters; ++i) {
    combine.gradients[i] = parameters.facts.gradients[i];
    gradients.push_back(tensors[i] ? empty_gradient(*tensors[i]) : empty_vector(x, 0, raw_dtype(*tensors[0])));
    if (tensors[i]) combine.to[i] = Parameters<A>::view(gradients.back(), centre_tap(variant, flags, *tensors[i], i));
  }
  const cudaError_t error = launch_combine(sizeof(A) == 8, launch.small_threads(), combine, launch.stream);
  require_launched(error, "combine_gradients", launch.request, "one block of numbers per parameter");
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
