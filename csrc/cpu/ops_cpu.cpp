// SPDX-License-Identifier: MIT
// L3. The operators on the CPU: check, allocate, run, for all variants; registered at the end of this file.
#include "../operators.h"
#include "parameters.h"
#include "schedule.h"

namespace eca {
namespace {

using torch::stable::get_num_threads;

const Parallel& threads() {
  static thread_local Parallel parallel{1, [](int64_t count, void (*body)(int64_t, int64_t, void*), void* context) {
                                          torch_parallel_for(0, count, 1, body, context);
                                        }};
  parallel.threads = static_cast<int>(get_num_threads());
  return parallel;
}

Batch batch(const Tensor& t, Layout layout) {
  const MapShape shape(t);
  return {t.data_ptr(), shape.sample_stride(), shape.run_stride(layout)};
}

// The layout that both x and its output have, if there is one. A map with one position or one channel has both.
std::optional<Layout> common_layout(const MapShape& x, const MapShape& y) {
  const Layout first = x.s == 1 ? Layout::kRows : Layout::kPlanes;
  const Layout second = x.s == 1 ? Layout::kPlanes : Layout::kRows;
  for (const Layout layout : {first, second}) {
    if (x.fits(layout) && y.fits(layout)) return layout;
  }
  return std::nullopt;
}

// `map` itself if it lies as the kernels will walk, else one dense copy that lies like `like`.
Tensor in_layout(const Tensor& map, Layout layout, const Tensor& like) {
  if (MapShape(map).fits(layout)) return map;
  Tensor copy = empty_strided(like, like.dim(), like.sizes().data(), like.strides().data(), raw_dtype(map));
  torch::stable::copy_(copy, map);
  return copy;
}

// x, the output that lies like it, and the layout they share; x by way of one dense copy if it has to be.
class Maps {
 public:
  explicit Maps(const Tensor& given) : shape(given), x(given), out(empty_like(given, shape)), result_(out) {
    require(x.is_cpu(), "x");
    const MapShape out_shape(out);
    if (const auto common = common_layout(shape, out_shape)) {
      layout = *common;
      return;
    }
    x = torch::stable::contiguous(x);
    if (!out_shape.fits(Layout::kPlanes)) out = torch::stable::empty_like(x);
  }

  Tensor finish() {
    if (out.get() != result_.get()) torch::stable::copy_(result_, out);
    return result_;
  }

  const MapShape shape;  // of the x that was given
  Layout layout = Layout::kPlanes;
  Tensor x, out;

 private:
  Tensor result_;
};

void require_like(const Tensor& t, const Tensor& x, const char* argument) {
  require(t.is_cpu() && t.scalar_type() == x.scalar_type() && same_sizes(t, x), argument);
}

int32_t accumulator_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

template <class A>
Problem problem(const Tensor& x, const Maps& maps, Variant variant, const Parameters<A>& parameters) {
  const int64_t c = maps.shape.c(), half = parameters.args.kernel_size / 2;
  return {maps.shape.n(), c, maps.shape.s, dtype_of(x), maps.layout, variant, parameters.args.flags, &parameters.args,
          gate_workspace(c, half) + parameters.facts.scratch_size};
}

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                  int64_t flags, OptionalTensor* mean) {
  Maps maps(x);
  const Parameters<A> parameters(variant, tensors, x, maps.shape.c(), flags);
  ForwardCall call{batch(maps.x, maps.layout), {}, batch(maps.out, maps.layout), nullptr};
  OptionalTensor dense_residual;
  if (residual) {
    require_like(*residual, x, "residual");
    dense_residual = in_layout(*residual, maps.layout, maps.out);
    call.residual = batch(*dense_residual, maps.layout);
  }
  if (mean) {
    *mean = empty_matrix(x, maps.shape.n(), maps.shape.c(), accumulator_dtype(x));
    call.mean = (*mean)->mutable_data_ptr();
  }
  run_forward(problem(x, maps, variant, parameters), call, threads());
  return maps.finish();
}

// Sums the samples' records into the gradient of parameter i, see gates/gate.h.
template <class A>
Tensor parameter_gradient(int i, const Problem& p, const BackwardCall& call, const GateFacts& facts, const Tensor& parameter) {
  const auto combine = kernels().gates[static_cast<int>(p.variant)][sizeof(A) == sizeof(double)].combine;
  const ParameterGradient& g = facts.gradients[i];
  const A* record = static_cast<const A*>(call.record) + g.offset;
  ParameterOutput<A> output(parameter, centre_tap(p.variant, p.flags, parameter, i));
  A* out = output.data();
  if (g.how == Combine::kSum) {
    combine(nullptr, 0, record, call.record_size, p.n, 0, g.count, out);
    return output.tensor();
  }
  const void* values = g.how == Combine::kMean ? call.mean : call.field;
  const auto rows = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) combine(record + r, call.record_size, values, p.c, p.n, 0, p.c, out + r * p.c);
  };
  const bool small = g.count * p.c * p.n < 32768;
  small ? rows(0, g.count) : torch::stable::parallel_for(0, g.count, 1, rows);
  return output.tensor();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean, const OptionalTensor& y,
                      const ParameterList& tensors, int64_t flags) {
  Maps maps(x);
  const int64_t n = maps.shape.n(), c = maps.shape.c();
  const bool relu = (flags & kRelu) != 0, grad_residual = (flags & kGradResidual) != 0;
  const Parameters<A> parameters(variant, tensors, x, c, flags);
  require_like(grad_y, x, "grad_y");
  require(has_sizes(mean, {n, c}) && mean.is_contiguous() && raw_dtype(mean) == accumulator_dtype(x), "mean");
  require(y.has_value() == relu && (relu || !grad_residual), "y");

  const int64_t record_size = parameters.facts.record_size;
  const std::unique_ptr<A[]> memory(new A[n * (record_size + c) + 1]);
  const Tensor dense_grad_y = in_layout(grad_y, maps.layout, maps.out);
  BackwardCall call{batch(dense_grad_y, maps.layout), batch(maps.x, maps.layout), {}, batch(maps.out, maps.layout), {},
                    mean.const_data_ptr(), memory.get(), memory.get() + n * record_size, record_size};
  OptionalTensor dense_y;
  if (y) {
    require_like(*y, x, "y");
    dense_y = in_layout(*y, maps.layout, maps.out);
    call.y = batch(*dense_y, maps.layout);
  }
  Gradients gradients;
  gradients.push_back(maps.out);
  gradients.push_back(grad_residual ? empty_strided(x, x.dim(), x.sizes().data(), maps.out.strides().data(), raw_dtype(x))
                                    : empty_vector(x, 0, raw_dtype(x)));
  if (grad_residual) call.grad_residual = batch(gradients[1], maps.layout);

  const Problem p = problem(x, maps, variant, parameters);
  run_backward(p, call, threads());
  gradients[0] = maps.finish();
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

STABLE_TORCH_LIBRARY_IMPL(eca_cuda, CPU, m) { implement<Cpu>(m); }

}  // namespace
}  // namespace eca
