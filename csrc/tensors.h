// SPDX-License-Identifier: MIT
// L3. From tensors to what the kernels take: sizes, dtypes, layouts, and outputs to write to. The usual path calls only
// C functions of the stable ABI: C++ wrappers that go through the dispatcher take 0.5-0.8 us each.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "options.h"
#include "sizes.h"

namespace eca {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The checks here only keep memory safe. eca_cuda/checks.py then says what exactly was wrong.
inline void require(bool valid, const char* argument) {
  if (!valid) throw std::invalid_argument(std::string("eca_cuda: invalid argument ") + argument);
}

inline void check(AOTITorchError error, const char* what) {
  if (error != TORCH_SUCCESS)
    throw std::runtime_error(std::string("eca_cuda: ") + what + " failed, see the message above");
}

inline int32_t raw_dtype(const Tensor& t) {
  int32_t dtype;
  check(aoti_torch_get_dtype(t.get(), &dtype), "reading a dtype");
  return dtype;
}

inline DType dtype_of(const Tensor& x) {
  // In the order of DType. torch numbers its dtypes at run time.
  static const int32_t known[kDTypes] = {aoti_torch_dtype_float32(), aoti_torch_dtype_float64(),
                                         aoti_torch_dtype_float16(), aoti_torch_dtype_bfloat16()};
  const auto found = std::find(known, known + kDTypes, raw_dtype(x));
  require(found != known + kDTypes, "dtype");
  return static_cast<DType>(found - known);
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  int32_t x, y;
  check(aoti_torch_get_device_type(a.get(), &x), "reading a device");
  check(aoti_torch_get_device_type(b.get(), &y), "reading a device");
  return x == y && a.get_device_index() == b.get_device_index();
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  const auto x = a.sizes(), y = b.sizes();
  return x.size() == y.size() && std::equal(x.begin(), x.end(), y.begin());
}

inline bool has_sizes(const Tensor& t, std::initializer_list<int64_t> expected) {
  const auto sizes = t.sizes();
  return sizes.size() == expected.size() && std::equal(sizes.begin(), sizes.end(), expected.begin());
}

// Sizes of a feature map [N, C, *spatial], and how its elements lie in memory.
class MapShape {
 public:
  explicit MapShape(const Tensor& x) : sizes_(x.sizes()), strides_(x.strides()) {
    require(sizes_.size() >= 3 && sizes_.size() <= 5, "x");
    require_countable("x", "elements", sizes_);
    for (size_t d = 2; d < sizes_.size(); ++d) s *= sizes_[d];
    spatial_stride_ = innermost_stride(2);
  }

  int64_t n() const { return sizes_[0]; }
  int64_t c() const { return sizes_[1]; }
  int64_t s = 1;  // number of positions

  // Distance in elements between planes or rows, or -1 if the map does not lie that way.
  int64_t run_stride(Layout layout) const {
    if (layout == Layout::kPlanes) return s <= 1 || spatial_stride_ == 1 ? strides_[1] : -1;
    return c() <= 1 || strides_[1] == 1 ? (s <= 1 ? 0 : spatial_stride_) : -1;
  }
  bool fits(Layout layout) const { return run_stride(layout) >= 0; }

  // Whether two maps that fit a layout list their positions in the same order (transposed ones do not).
  bool walks_like(const MapShape& other) const {
    for (size_t d = 2; d < sizes_.size(); ++d) {
      if (sizes_[d] != 1 && strides_[d] * other.spatial_stride_ != other.strides_[d] * spatial_stride_) return false;
    }
    return true;
  }

  int64_t sample_stride() const { return strides_[0]; }

  // Whether there are no gaps and no overlaps: then an output may have the same strides.
  bool is_dense() const { return innermost_stride(0) == 1; }

 private:
  // Of the dimensions from `first` on, in any order, if they are one even progression; else -1.
  int64_t innermost_stride(size_t first) const {
    size_t order[5], count = 0;  // of the dimensions by stride, without those of size 1
    for (size_t d = first; d < sizes_.size(); ++d) {
      if (sizes_[d] == 1) continue;
      size_t at = count++;  // insertion sort: at most five
      for (; at > 0 && strides_[order[at - 1]] > strides_[d]; --at) order[at] = order[at - 1];
      order[at] = d;
    }
    const int64_t innermost = count > 0 ? strides_[order[0]] : 1;
    int64_t expected = innermost;
    for (size_t i = 0; i < count; ++i) {
      if (strides_[order[i]] != expected) return -1;
      expected *= sizes_[order[i]];
    }
    return innermost;
  }

  torch::headeronly::IntHeaderOnlyArrayRef sizes_, strides_;
  int64_t spatial_stride_;  // between positions; -1: not the same for all
};

inline Tensor empty_strided(const Tensor& like, size_t dim, const int64_t* sizes, const int64_t* strides,
                            int32_t dtype) {
  AtenTensorHandle handle;
  int32_t device;
  check(aoti_torch_get_device_type(like.get(), &device), "reading a device");
  check(aoti_torch_empty_strided(static_cast<int64_t>(dim), sizes, strides, dtype, device, like.get_device_index(),
                                 &handle),
        "allocating an output");
  return Tensor(handle);
}

inline Tensor empty_vector(const Tensor& like, int64_t size, int32_t dtype) {
  const int64_t stride = 1;
  return empty_strided(like, 1, &size, &stride, dtype);
}

inline Tensor empty_matrix(const Tensor& like, int64_t rows, int64_t columns, int32_t dtype) {
  const int64_t sizes[] = {rows, columns}, strides[] = {std::max<int64_t>(columns, 1), 1};
  return empty_strided(like, 2, sizes, strides, dtype);
}

// A tensor with the sizes, strides and dtype of a dense one.
inline Tensor empty_as(const Tensor& dense) {
  return empty_strided(dense, dense.dim(), dense.sizes().data(), dense.strides().data(), raw_dtype(dense));
}

}  // namespace eca
