// SPDX-License-Identifier: MIT
// L2. The signs of y, where y was written element by element: several elements share a byte.
#include <algorithm>

#include "launch.cuh"
#include "vector.cuh"

namespace eca {
namespace {

constexpr int kMostThreads = 256;
constexpr int64_t kMostGrid = 2048;

// Reads y T[N, C, S] with any strides between samples and runs; writes its signs (problem.h), one byte per thread.
template <class T>
__global__ void __launch_bounds__(kMostThreads) eca_pack_signs_kernel(const __grid_constant__ PackArgs args) {
  constexpr int kPerByte = 16 / sizeof(T);
  const Problem& p = args.problem;
  const int64_t length = p.layout == Layout::kRows ? p.c : p.s, elements = p.c * p.s;
  const int64_t bytes = sign_bytes(elements, kPerByte);
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < p.n * bytes;
       i += gridDim.x * int64_t{blockDim.x}) {
    const int64_t n = i / bytes, byte = i % bytes, first = byte * kPerByte;
    const T* const y = static_cast<const T*>(args.y.data) + n * args.y.sample_stride;
    int64_t run = first / length, at = first % length;
    unsigned bits = 0;
    for (int k = 0; k < kPerByte && first + k < elements; ++k) {
      bits |= (widen(y[run * args.y.run_stride + at]) <= 0 ? 0u : 1u) << k;
      if (++at == length) {
        at = 0;
        ++run;
      }
    }
    args.signs.data[n * args.signs.sample_stride + byte] = static_cast<uint8_t>(bits);
  }
}

}  // namespace

cudaError_t launch_pack_signs(cudaError_t error, const Problem& p, const ForwardCall& call, const Plan& plan,
                              cudaStream_t stream) {
  if (error != cudaSuccess || !call.signs.data || plan.two_phase.vector > 1) return error;
  const int64_t bytes = p.n * sign_bytes(p.c * p.s, 16 / item_size(p.dtype));
  const int64_t blocks = std::min(ceil_divide(bytes, plan.threads), kMostGrid);
  if (blocks == 0) return cudaSuccess;
  const LaunchConfig launch(dim3(static_cast<unsigned>(blocks)), plan.threads, 0, stream);
  const PackArgs args{p, call.y, call.signs};
  if (p.dtype == DType::kHalf) return launch.launch(&eca_pack_signs_kernel<__half>, args);
  if (p.dtype == DType::kBFloat16) return launch.launch(&eca_pack_signs_kernel<__nv_bfloat16>, args);
  if (p.dtype == DType::kFloat) return launch.launch(&eca_pack_signs_kernel<float>, args);
  return launch.launch(&eca_pack_signs_kernel<double>, args);
}

}  // namespace eca
