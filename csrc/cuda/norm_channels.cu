// SPDX-License-Identifier: MIT
// L2. Batch norm's kernels between the two reads of the maps (norm.cuh): on numbers [N, C] and [C], which they add up
// in a fixed order.
#include <algorithm>

#include "launch.cuh"
#include "two_phase.cuh"

namespace eca {
namespace {

constexpr int kMostThreads = 512;

// One block has 32 channels of all samples: a channel per lane, every warps-th sample per warp.
template <class A>
struct Columns {
  int64_t c = int64_t{blockIdx.x} * kWarp + threadIdx.x % kWarp;
  int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  int64_t samples;
  bool exists;  // whether c < C

  __device__ explicit Columns(const Problem& p) : samples(p.n), exists(c < p.c) {}

  // Calls f(n, load(n)) for this warp's samples, with kBatch loads in flight.
  template <class Load, class F>
  __device__ void each_sample(Load load, F f) const {
    constexpr int kBatch = 4;
    if (!exists) return;
    for (int64_t first = warp; first < samples; first += kBatch * warps) {
      decltype(load(first)) loaded[kBatch] = {};
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (first + b * warps < samples) loaded[b] = load(first + b * warps);
#pragma unroll
      for (int b = 0; b < kBatch; ++b)
        if (first + b * warps < samples) f(first + b * warps, loaded[b]);
    }
  }
  // All-reduce over the warps, per channel.
  __device__ A sum(A number) const {
    __shared__ A numbers[kMostThreads];
    __syncthreads();
    numbers[threadIdx.x] = number;
    __syncthreads();
    A total = numbers[threadIdx.x % kWarp];
    for (int w = 1; w < warps; ++w) total += numbers[w * kWarp + threadIdx.x % kWarp];
    return total;
  }
};

template <class A>
struct Pair {
  A first, second;
};

// The mean of one channel of one sample, and the sum of squared distances from it. at: the index of its first tile.
template <class A>
__device__ Pair<A> sample_moments(const NormArgs<A, ForwardCall>& args, int64_t at) {
  const Problem& p = args.problem;
  const Tiling& tiling = args.plan.tiling;
  const A *const means = args.first + at, *const squares = args.second + at;
  const auto count = [&](int64_t b) { return static_cast<A>(min(tiling.positions, p.s - b * tiling.positions)); };
  A sum = 0, total = 0;
  for (int64_t b = 0; b < tiling.blocks; ++b) sum += count(b) * means[b * p.c];
  const A mean = sum / static_cast<A>(p.s);
  for (int64_t b = 0; b < tiling.blocks; ++b) total += squares_about(squares[b * p.c], count(b), means[b * p.c] - mean);
  return {mean, total};
}

// The means of each sample, and mean and variance over all samples. Means are measured from an element of the channel,
// so that no digits are lost where the mean is large. Reads first and second, A[N, blocks, C], of tiles, and those
// elements from norm_mean A[C]; writes the means A[N, C], norm_mean and norm_var, A[C], and overwrites first.
template <class A>
__global__ void __launch_bounds__(kMostThreads)
    eca_norm_statistics_kernel(const __grid_constant__ NormArgs<A, ForwardCall> args) {
  const Problem& p = args.problem;
  const Tiling& tiling = args.plan.tiling;
  const Columns<A> columns(p);
  const int64_t c = columns.c, stride = tiling.blocks * p.c;
  const A size = static_cast<A>(p.s), origin = columns.exists ? args.norm_mean[c] : A(0);
  A* const means = static_cast<A*>(args.call.mean);
  A sum = 0, squares = 0;
  columns.each_sample([&](int64_t n) { return Pair<A>{args.first[n * stride + c], args.second[n * stride + c]}; },
                      [&](int64_t n, Pair<A> of) {
                        if (tiling.blocks > 1) of = sample_moments(args, n * stride + c);
                        args.first[n * stride + c] = of.first;
                        means[n * p.c + c] = origin + of.first;
                        sum += of.first;
                        squares += of.second;
                      });
  const A mean = columns.sum(sum) / static_cast<A>(p.n);
  columns.each_sample([&](int64_t n) { return args.first[n * stride + c]; },  // this thread's own
                      [&](int64_t, A of) { squares = squares_about(squares, size, of - mean); });
  const A total = columns.sum(squares);
  if (columns.exists && columns.warp == 0) {
    args.norm_mean[c] = origin + mean;
    args.norm_var[c] = total / (static_cast<A>(p.n) * size);
  }
}

// Calls f(n, executor) for the samples of this block.
template <class A, class Call, class F>
__device__ void each_gate(const NormArgs<A, Call>& args, bool backward, F f) {
  const PassBase<A, Layout::kPlanes, 1, false, NormArgs<A, Call>> pass{args};
  auto x = pass.channels(backward, blockIdx.x);
  x.load_numbers();
  for (int64_t n = blockIdx.x; n < args.problem.n; n += gridDim.x) f(n, x);
}

// g = Gate(mean of u), gate = scale g, shift = shift g: gates/norm.h. One block per sample at a time.
// Reads the means A[N, C], batch norm's parameters [C] and the gate's; writes gate and shift, A[N, C].
template <class A>
__global__ void __launch_bounds__(256) eca_norm_gates_kernel(const __grid_constant__ NormArgs<A, ForwardCall> args) {
  const NormParameters& norm = args.gate_of.norm;
  each_gate(args, false, [&](int64_t n, auto& x) {
    const int64_t row = n * args.problem.c;
    const A* const means = static_cast<const A*>(args.call.mean) + row;
    A *const mean = x.kernel_array(0), *const gate = x.kernel_array(1);
    x.each([&](int64_t c) { mean[c] = channel_norm<A>(norm, c).normalized(means[c]); });
    EcaGate<A>{args.gate_of.shape}.forward(x, mean, gate);
    x.each([&](int64_t c) {
      const ChannelNorm<A> of = channel_norm<A>(norm, c);
      args.gate[row + c] = of.scale * gate[c];
      args.shift[row + c] = of.shift() * gate[c];
    });
  });
}

// (g, dm) = Gate'(mean of u, dg), and the two sums of dL/du: gates/norm.h. One block per sample at a time.
// Reads first and second, A[N, blocks, C], the sums of each tile, the means A[N, C], batch norm's parameters [C] and
// the gate's; writes gate = scale g, shift = dm, sum and dot, A[N, C], and the records of gates/gate.h.
template <class A>
__global__ void __launch_bounds__(256)
    eca_norm_gate_gradients_kernel(const __grid_constant__ NormArgs<A, BackwardCall> args) {
  const NormParameters& norm = args.gate_of.norm;
  const int64_t blocks = args.plan.tiling.blocks, channels = args.problem.c;
  each_gate(args, true, [&](int64_t n, auto& x) {
    const int64_t row = n * channels;
    const A* const means = static_cast<const A*>(args.call.mean) + row;
    A *const mean = x.kernel_array(0), *const gate = x.kernel_array(1), *const grad = x.kernel_array(2);
    x.each([&](int64_t c) {
      const ChannelNorm<A> of = channel_norm<A>(norm, c);
      const auto total = [&](const A* tiles) {
        A total = tiles[row * blocks + c];
        for (int64_t b = 1; b < blocks; ++b) total += tiles[row * blocks + b * channels + c];
        return total;
      };
      const A sum = total(args.first), dot = total(args.second);
      mean[c] = of.normalized(means[c]);
      grad[c] = of.gate_gradient(sum, dot);
      args.sum[row + c] = sum;
      args.dot[row + c] = dot;
    });
    EcaGate<A> of_gate{args.gate_of.shape};
    of_gate.backward(x, mean, gate, grad);
    of_gate.record(
        x, Record<A>{nullptr, static_cast<A*>(args.call.records.block) + n * args.call.records.block_size, nullptr});
    x.each([&](int64_t c) {
      const ChannelNorm<A> of = channel_norm<A>(norm, c);
      args.gate[row + c] = of.scale * gate[c];
      args.shift[row + c] = grad[c];
      of.add_gate(gate[c], grad[c], means[c], &args.sum[row + c], &args.dot[row + c]);
    });
  });
}

// The gradients of batch norm's weight and bias, and what grad_x = grad_y * gate + x * slope + shift needs:
// gates/norm.h. Reads sum, dot and shift, A[N, C], which holds dm, and batch norm's parameters [C]; writes its
// gradients [C], slope A[C] and shift A[N, C].
template <class A>
__global__ void __launch_bounds__(kMostThreads)
    eca_norm_weight_gradients_kernel(const __grid_constant__ NormArgs<A, BackwardCall> args) {
  const Problem& p = args.problem;
  const Columns<A> columns(p);
  const int64_t c = columns.c;
  A sum = 0, dot = 0;
  columns.each_sample([&](int64_t n) { return Pair<A>{args.sum[n * p.c + c], args.dot[n * p.c + c]}; },
                      [&](int64_t, Pair<A> of) {
                        sum += of.first;
                        dot += of.second;
                      });
  sum = columns.sum(sum);
  dot = columns.sum(dot);
  if (!columns.exists) return;
  const ChannelNorm<A> norm = channel_norm<A>(args.gate_of.norm, c);
  const A size = static_cast<A>(p.s);
  const NormGradients<A> grad = norm.gradients(sum, dot, static_cast<A>(p.n) * size, (p.flags & kBatchStatistics) != 0);
  columns.each_sample([&](int64_t n) { return args.shift[n * p.c + c]; },
                      [&](int64_t n, A dm) { args.shift[n * p.c + c] = norm.scale * dm / size - grad.common; });
  if (columns.warp > 0) return;
  args.slope[c] = grad.slope;
  if (args.grad_weight.data) write(args.grad_weight, c, grad.weight);
  if (args.grad_bias.data) write(args.grad_bias, c, grad.bias);
}

}  // namespace

template <class A, class Call>
cudaError_t launch_norm_channels(const Plan& plan, const NormArgs<A, Call>& args, int threads, int64_t blocks,
                                 cudaStream_t stream) {
  const LaunchConfig of_samples(dim3(static_cast<unsigned>(blocks)), plan.threads, plan.two_phase.shared.total, stream);
  const LaunchConfig of_channels(dim3(static_cast<unsigned>((args.problem.c + kWarp - 1) / kWarp)),
                                 std::min(threads, kMostThreads), 0, stream);
  cudaError_t error = cudaSuccess;
  if constexpr (std::is_same_v<Call, ForwardCall>) {
    error = of_channels.launch(&eca_norm_statistics_kernel<A>, args);
    return error ? error : of_samples.launch(&eca_norm_gates_kernel<A>, args);
  } else {
    error = of_samples.launch(&eca_norm_gate_gradients_kernel<A>, args);
    return error ? error : of_channels.launch(&eca_norm_weight_gradients_kernel<A>, args);
  }
}

template cudaError_t launch_norm_channels(const Plan&, const NormArgs<float, ForwardCall>&, int, int64_t, cudaStream_t);
template cudaError_t launch_norm_channels(const Plan&, const NormArgs<double, ForwardCall>&, int, int64_t,
                                          cudaStream_t);
template cudaError_t launch_norm_channels(const Plan&, const NormArgs<float, BackwardCall>&, int, int64_t,
                                          cudaStream_t);
template cudaError_t launch_norm_channels(const Plan&, const NormArgs<double, BackwardCall>&, int, int64_t,
                                          cudaStream_t);

}  // namespace eca
