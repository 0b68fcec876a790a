// SPDX-License-Identifier: MIT
// L2. The gradients of a gate's parameters, combined from the samples' records (gates/gate.h): one launch, with the
// parameter as the grid's second dimension.
#include <algorithm>

#include "block.cuh"
#include "launch.cuh"
#include "vector.cuh"

namespace eca {
namespace {

// A block for each number; its threads divide the records, A[count, size]. The order depends on the block size alone.
template <class A>
__device__ void add_records(const A* records, int64_t size, int64_t count, const Gradient& g, const ParameterView& to) {
  __shared__ A warps[kWarp];
  for (int64_t i = blockIdx.x; i < g.count; i += gridDim.x) {
    A total = 0;
#pragma unroll 8
    for (int64_t n = threadIdx.x; n < count; n += blockDim.x) total += records[n * size + g.offset + i];
    total = sum_of_lanes(total, kWarp);
    if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = total;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (unsigned w = 1; w < blockDim.x / kWarp; ++w) total += warps[w];
      write(to, i, total);
    }
    __syncthreads();
  }
}

// A thread for each number: sum over n of record[n][offset + r] * values[n][c], n ascending.
template <class A>
__device__ void add_products(const GradientArgs& args, const Gradient& g, const ParameterView& to) {
  const A* const values = static_cast<const A*>(g.how == Combine::kMean ? args.mean : args.records.channel);
  const A* const record = static_cast<const A*>(args.records.sample) + g.offset;
  const int64_t count = g.count * args.channels;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count; i += gridDim.x * int64_t{blockDim.x}) {
    const int64_t r = i / args.channels, c = i % args.channels;
    A total = 0;
#pragma unroll 4
    for (int64_t n = 0; n < args.samples; ++n)
      total += record[n * args.records.sample_size + r] * values[n * args.channels + c];
    write(to, r, c, total);
  }
}

// The gradient of every parameter, as Combine in gates/gate.h defines it.
// Reads the records A[N, sample_size], A[N, blocks, block_size] and A[N, C], and the means A[N, C]; writes the
// gradients in their own dtypes.
template <class A>
__global__ void eca_parameter_gradients_kernel(const __grid_constant__ GradientArgs args) {
  ptx::wait_for_previous_kernel();
  const ParameterView to = args.to[blockIdx.y];
  if (!to.data) return;
  const Gradient g = args.gradients[blockIdx.y];
  const Records& from = args.records;
  if (g.how == Combine::kBlocks) {
    add_records(static_cast<const A*>(from.block), from.block_size, args.samples * args.blocks, g, to);
  } else if (g.how == Combine::kSum) {
    add_records(static_cast<const A*>(from.sample), from.sample_size, args.samples, g, to);
  } else {
    add_products<A>(args, g, to);
  }
}

}  // namespace

cudaError_t launch_parameter_gradients(bool wide, int threads, bool programmatic, const GradientArgs& args,
                                       cudaStream_t stream) {
  int64_t most = 1;  // blocks
  for (int i = 0; i < kMaxParameters; ++i) {
    const Gradient& g = args.gradients[i];
    if (!args.to[i].data) continue;
    most = std::max(most, g.has_rows() ? (g.count * args.channels + threads - 1) / threads : g.count);
  }
  LaunchConfig launch(dim3(static_cast<unsigned>(std::min<int64_t>(most, 1024)), kMaxParameters), threads, 0, stream);
  if (programmatic) launch.set_programmatic();
  return wide ? launch.launch(eca_parameter_gradients_kernel<double>, args)
              : launch.launch(eca_parameter_gradients_kernel<float>, args);
}

}  // namespace eca
