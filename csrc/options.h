// SPDX-License-Identifier: MIT
// L0. Names shared by all layers: the option bits of the operators, memory layouts and dtypes.
#pragma once
#include <cstdint>

// Functions shared by host and GPU, and loops in them that are not worth unrolling on a GPU.
#ifdef __CUDACC__
#define ECA_HD __host__ __device__ __forceinline__
#define ECA_ROLLED _Pragma("unroll 1")
#else
#define ECA_HD inline
#define ECA_ROLLED
#endif

namespace eca {

enum class Variant : int;  // a position in the list of gates: gates/registry.h
inline constexpr int kMaxParameters = 6;

// The operators' `flags` argument is a sum of these. Python reads the values from eca_cuda._C.
enum Option : int64_t {
  kCircular = 1,         // channels have no edges: the convolution wraps around
  kHardSigmoid = 2,      // hard_sigmoid wherever the original has a sigmoid
  kRelu = 4,             // y = max(x * g + residual, 0)
  kCrossChannel = 8,     // multi-kernel: convolve across channels
  kSingleSigmoid = 16,   // bidirectional: leave the outer sigmoid out
  kGradResidual = 32,    // backward with kRelu: the gradient of the residual is wanted too
  kBatchStatistics = 64  // batch norm's backward: mean and variance are those of x
};

enum class DType : int { kFloat, kDouble, kHalf, kBFloat16 };
inline constexpr int kDTypes = 4;
constexpr int64_t item_size(DType dtype) { return dtype == DType::kFloat ? 4 : dtype == DType::kDouble ? 8 : 2; }

// The type in which sums of T are computed.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Where the elements of one sample lie. Kernels vectorise over runs of consecutive elements: planes or rows.
enum class Layout : int {
  kPlanes,  // element (c, s) at c * stride + s: contiguous tensors
  kRows     // element (c, s) at s * stride + c: channels_last tensors
};
inline constexpr int kLayouts = 2;

}  // namespace eca
