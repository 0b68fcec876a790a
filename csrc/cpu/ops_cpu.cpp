// SPDX-License-Identifier: MIT
// L3. The operators on the CPU: check, allocate, run, for all variants; registered at the end of this file.
#include "../operators.h"
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
  prefer_huge_pages(output.data_ptr(), output.numel() * item_size(dtype_of(output)));
  return output;
}

// The feature maps of one call: x, the output that lies like it, and the layout in which the kernels walk all of them.
class Maps {
 public:
  explicit Maps(const Tensor& given) : shape(given), x_(given), out_(given), result_(given) {
    require(given.is_cpu(), "x");
    const bool dense = shape.is_dense();
    result_ = out_ = dense ? output_as(x_) : torch::stable::empty_like(x_);
    out_shape_.emplace(out_);
    if (shape.walks_like(*out_shape_)) {
      // A map with one position or one channel has both layouts; rows vectorise the former better.
      const Layout first = shape.s == 1 ? Layout::kRows : Layout::kPlanes;
      const Layout second = shape.s == 1 ? Layout::kPlanes : Layout::kRows;
      for (const Layout candidate : {first, second}) {
        if (!shape.fits(candidate) || !out_shape_->fits(candidate)) continue;
        layout = candidate;
        return;
      }
    }
    x_ = torch::stable::contiguous(x_);
    out_ = torch::stable::empty_like(x_);
    out_shape_.emplace(out_);
  }

  Batch x() { return batch(x_, MapShape(x_)); }
  Batch out() { return batch(out_, *out_shape_); }

  // Another map of the same sizes, by way of one dense copy if it does not lie like the output.
  Batch another(const Tensor& map) {
    const MapShape its(map);
    if (its.fits(layout) && its.walks_like(*out_shape_)) return batch(map, its);
    Tensor copy = empty_as(out_);
    torch::stable::copy_(copy, map);
    copies_.push_back(copy);
    return batch(copy, *out_shape_);
  }

  // One more output.
  Batch another_out(Tensor* made) {
    *made = output_as(out_);
    return batch(*made, *out_shape_);
  }

  // An output as the caller gets it: with the strides of torch.empty_like(x).
  Tensor finish() const { return finish(out_); }
  Tensor finish(const Tensor& computed) const {
    if (out_.get() == result_.get()) return computed;
    Tensor laid_out = empty_as(result_);
    torch::stable::copy_(laid_out, computed);
    return laid_out;
  }

  const MapShape shape;
  Layout layout = Layout::kPlanes;

 private:
  Batch batch(const Tensor& t, const MapShape& its) const {
    return {t.data_ptr(), its.sample_stride(), its.run_stride(layout)};
  }

  Tensor x_, out_, result_;
  std::optional<MapShape> out_shape_;
  std::vector<Tensor> copies_;
};

void require_like(const Tensor& t, const Tensor& x, const char* argument) {
  require(t.is_cpu() && raw_dtype(t) == raw_dtype(x) && same_sizes(t, x), argument);
}

template <class A>
int32_t dtype_of_accumulator() {
  return sizeof(A) == sizeof(double) ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

template <class A>
Problem problem(const Tensor& x, const Maps& maps, Variant variant, const Parameters<A>& parameters) {
  const int64_t c = maps.shape.c(), half = parameters.args.kernel_size / 2;
  return {maps.shape.n(),
          c,
          maps.shape.s,
          dtype_of(x),
          maps.layout,
          variant,
          parameters.args.flags,
          &parameters.args,
          gate_workspace(c, half) + parameters.facts.scratch_size};
}

template <class A>
Tensor forward_as(Variant variant, const Tensor& x, const ParameterList& tensors, const OptionalTensor& residual,
                  int64_t flags, OptionalTensor* mean) {
  Maps maps(x);
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
  run_forward(problem(x, maps, variant, parameters), call, threads());
  return maps.finish();
}

// Sums the samples' records into the gradient of parameter i, see gates/gate.h.
template <class A>
Tensor parameter_gradient(int i, const Problem& p, const BackwardCall& call, const GateFacts& facts,
                          const Tensor& parameter) {
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
    for (int64_t r = begin; r < end; ++r)
      combine(record + r, call.record_size, values, p.c, p.n, 0, p.c, out + r * p.c);
  };
  const bool small = g.count * p.c * p.n < 32768;
  small ? rows(0, g.count) : torch::stable::parallel_for(0, g.count, 1, rows);
  return output.tensor();
}

template <class A>
Gradients backward_as(Variant variant, const Tensor& grad_y, const Tensor& x, const Tensor& mean,
                      const OptionalTensor& y, const ParameterList& tensors, int64_t flags) {
  Maps maps(x);
  const int64_t n = maps.shape.n(), c = maps.shape.c();
  const bool relu = (flags & kRelu) != 0, grad_residual = (flags & kGradResidual) != 0;
  const Parameters<A> parameters(variant, tensors, x, c, flags);
  require_like(grad_y, x, "grad_y");
  require(has_sizes(mean, {n, c}) && mean.is_contiguous() && raw_dtype(mean) == dtype_of_accumulator<A>(), "mean");
  require(y.has_value() == relu && (relu || !grad_residual), "y");

  const int64_t record_size = parameters.facts.record_size;
  const std::unique_ptr<A[]> memory(new A[n * (record_size + c) + 1]);
  if (c == 0) std::fill_n(memory.get(), n * record_size, A(0));  // nobody will write the records
  BackwardCall call{maps.another(grad_y),           maps.x(),   {}, maps.out(), {}, mean.const_data_ptr(), memory.get(),
                    memory.get() + n * record_size, record_size};
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

  const Problem p = problem(x, maps, variant, parameters);
  run_backward(p, call, threads());
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

STABLE_TORCH_LIBRARY_IMPL(eca_cuda, CPU, m) { implement<Cpu>(m); }

}  // namespace
}  // namespace eca
