// SPDX-License-Identifier: MIT
// L3. From tensors of any strides to maps in a layout that the kernels of both backends take.
#pragma once
#include <vector>

#include "problem.h"
#include "tensors.h"

namespace eca {

// The feature maps of one call: x, an output with its strides, and the layout of all of them.
class FeatureMaps {
 public:
  // Makes an output with the sizes, strides and dtype of a dense tensor.
  using Allocate = Tensor (*)(const Tensor& dense);

  FeatureMaps(const Tensor& given, Allocate allocate)
      : shape(given), allocate_(allocate), x_(given), out_(given), result_(given) {
    const bool dense = shape.is_dense();
    result_ = out_ = dense ? allocate_(x_) : torch::stable::empty_like(x_);
    out_shape_.emplace(out_);
    if (shape.walks_like(*out_shape_)) {
      // A map with one position or one channel has both layouts; kRows vectorises the former better.
      for (const bool rows : {shape.s == 1, shape.s != 1}) {
        layout = rows ? Layout::kRows : Layout::kPlanes;
        if (shape.fits(layout) && out_shape_->fits(layout)) return;
      }
    }
    layout = Layout::kPlanes;
    x_ = torch::stable::contiguous(x_);
    out_ = torch::stable::empty_like(x_);
    out_shape_.emplace(out_);
  }

  MapView x() { return input(x_, MapShape(x_)); }
  MapView out() { return output(out_); }

  // Another map of the same sizes, copied if it has another layout or order of positions than the output.
  MapView another(const Tensor& map) {
    const MapShape map_shape(map);
    if (map_shape.fits(layout) && map_shape.walks_like(*out_shape_)) return input(map, map_shape);
    Tensor copy = empty_as(out_);
    torch::stable::copy_(copy, map);
    copies_.push_back(copy);
    return input(copy, *out_shape_);
  }

  // One more output.
  MapView another_out(Tensor* made) {
    *made = allocate_(out_);
    return output(*made);
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
  MapView batch(const void* data, const MapShape& map_shape) const {
    return {const_cast<void*>(data), map_shape.sample_stride(), map_shape.run_stride(layout)};
  }
  // const_data_ptr: a mutable pointer would materialise a copy-on-write tensor.
  MapView input(const Tensor& t, const MapShape& map_shape) const { return batch(t.const_data_ptr(), map_shape); }
  MapView output(const Tensor& t) const { return batch(t.mutable_data_ptr(), *out_shape_); }

  Allocate allocate_;
  Tensor x_, out_, result_;
  std::optional<MapShape> out_shape_;
  std::vector<Tensor> copies_;
};

}  // namespace eca
