// SPDX-License-Identifier: MIT
// L2. See parameters.h. One launch each, with the parameter as the grid's second dimension.
#include "parameters.h"

#include <algorithm>

#include "block.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace eca {
namespace {

// Calls f with a null pointer to the C++ type of the dtype.
template <class A, class F>
__device__ __forceinline__ void with_type(DType dtype, F f) {
  if (dtype == DType::kHalf) return f(static_cast<__half*>(nullptr));
  if (dtype == DType::kBFloat16) return f(static_cast<__nv_bfloat16*>(nullptr));
  return f(static_cast<A*>(nullptr));
}

template <class A>
__global__ void widen_parameters(const __grid_constant__ WidenArgs args) {
  const int64_t first = blockIdx.x * int64_t{blockDim.x} + threadIdx.x, step = gridDim.x * int64_t{blockDim.x};
  if (blockIdx.y == kMaxParameters) {
    unsigned* const counters = static_cast<unsigned*>(args.counters);
    for (int64_t i = first; i < args.counter_bytes / 4; i += step) counters[i] = 0;
    return;
  }
  const ParameterView from = args.from[blockIdx.y];
  A* const to = static_cast<A*>(args.to[blockIdx.y]);
  if (!to) return;
  with_type<A>(from.dtype, [&](auto* type) {
    const auto* const values = static_cast<decltype(type)>(from.data);
    for (int64_t i = first; i < from.count; i += step) to[i] = widen(values[i * from.step + from.centre]);
  });
}

// Writes number i of a gradient and the zeros around it.
template <class A>
__device__ void put(const ParameterView& to, int64_t i, A value) {
  with_type<A>(to.dtype, [&](auto* type) {
    auto* const group = static_cast<decltype(type)>(to.data) + i * to.step;
    for (int64_t j = 0; j < to.step; ++j) narrow(j == to.centre ? value : A(0), group + j);
  });
}

// A block per number: few numbers, many samples.
template <class A>
__device__ void combine_sums(const CombineArgs& args, const ParameterGradient& g, const ParameterView& to) {
  __shared__ A warps[kWarp];
  const A* const record = static_cast<const A*>(args.record) + g.offset;
  for (int64_t i = blockIdx.x; i < g.count; i += gridDim.x) {
    A total = 0;
    for (int64_t n = threadIdx.x; n < args.samples; n += blockDim.x) total += record[n * args.record_size + i];
    total = sum_of_block(total, warps);
    if (threadIdx.x == 0) put(to, i, total);
    __syncthreads();
  }
}

// A thread per number: sum over n of record[n][offset + r] * values[n][c], n ascending.
template <class A>
__device__ void combine_products(const CombineArgs& args, const ParameterGradient& g, const ParameterView& to) {
  const A* const values = static_cast<const A*>(g.how == Combine::kMean ? args.mean : args.field);
  const A* const record = static_cast<const A*>(args.record) + g.offset;
  const int64_t count = g.count * args.channels;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * int64_t{blockDim.x}) {
    const int64_t r = i / args.channels, c = i % args.channels;
    A total = 0;
#pragma unroll 4
    for (int64_t n = 0; n < args.samples; ++n)
      total += record[n * args.record_size + r] * values[n * args.channels + c];
    put(to, i, total);
  }
}

template <class A>
__global__ void combine_gradients(const __grid_constant__ CombineArgs args) {
  const ParameterView to = args.to[blockIdx.y];
  if (!to.data) return;
  const ParameterGradient g = args.gradients[blockIdx.y];
  if (g.how == Combine::kSum) {
    combine_sums<A>(args, g, to);
  } else {
    combine_products<A>(args, g, to);
  }
}

unsigned blocks_for(int64_t numbers, int threads) {
  return static_cast<unsigned>(std::clamp<int64_t>((numbers + threads - 1) / threads, 1, 1024));
}

}  // namespace

cudaError_t launch_widen(bool wide, int threads, const WidenArgs& args, cudaStream_t stream) {
  int64_t most = args.counter_bytes / 4;
  for (int i = 0; i < kMaxParameters; ++i)
    if (args.to[i]) most = std::max(most, args.from[i].count);
  const dim3 grid(blocks_for(most, threads), kMaxParameters + 1);
  return wide ? launch(widen_parameters<double>, grid, threads, 0, stream, args)
              : launch(widen_parameters<float>, grid, threads, 0, stream, args);
}

cudaError_t launch_combine(bool wide, int threads, const CombineArgs& args, cudaStream_t stream) {
  int64_t most = 1;
  for (int i = 0; i < kMaxParameters; ++i) {
    const ParameterGradient& g = args.gradients[i];
    if (args.to[i].data) most = std::max(most, g.how == Combine::kSum ? g.count * threads : g.count * args.channels);
  }
  const dim3 grid(blocks_for(most, threads), kMaxParameters);
  return wide ? launch(combine_gradients<double>, grid, threads, 0, stream, args)
              : launch(combine_gradients<float>, grid, threads, 0, stream, args);
}

}  // namespace eca
