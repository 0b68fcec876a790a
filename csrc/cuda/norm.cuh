// SPDX-License-Identifier: MIT
// L1. Batch norm before a gate (gates/norm.h), where statistics or their gradients need all samples before the first
// output: the forward pass in training, and every backward pass. The kernels here touch the maps. One launch reads
// every tile, two launches of norm_channels.cu turn the sums into numbers per channel, and one launch reads every tile
// again and writes the outputs. Forward passes by given statistics are in one_pass.cuh and two_phase.cuh.
#pragma once
#include "two_phase.cuh"

namespace eca {

// The sums of x - p and (x - p)^2. The pivot p avoids cancellation: it is the median of the first, middle and last
// element of the channel in the tile, as a single element may be an outlier.
template <int N, Layout L, class X>
struct Moments {
  using A = Accumulator<typename X::Element>;
  using Loaded = Vector<typename X::Element, N>;
  static constexpr bool kFar = X::kFar;
  static constexpr int kSums = 2;
  X x;
  int64_t s0, s1;  // positions of the tile

  __device__ __forceinline__ A at(int64_t c, int64_t s) const {
    return widen(*(L == Layout::kRows ? x.at(s, c) : x.at(c, s)));
  }
  __device__ __forceinline__ A centre(int64_t c) const {
    const A first = at(c, s0), middle = at(c, s0 + (s1 - s0) / 2), last = at(c, s1 - 1);
    const A low = first < last ? first : last, high = first < last ? last : first;
    return middle < low ? low : middle > high ? high : middle;
  }
  __device__ __forceinline__ Loaded early(int64_t run, int64_t i) const { return x.template load_once<N>(run, i); }
  __device__ __forceinline__ void arrive() const {}
  __device__ __forceinline__ void late(int64_t, int64_t, Loaded&) const {}
  __device__ __forceinline__ void get(const Loaded& loaded, const A (&centre)[N], A (&terms)[2][N]) const {
    loaded.get(terms[0]);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      terms[0][k] -= centre[k];
      terms[1][k] = terms[0][k] * terms[0][k];
    }
  }
};

// The sums of grad_y and grad_y (x - mu).
template <int N, class G, class X>
struct SumAndDot {
  using A = Accumulator<typename X::Element>;
  static constexpr bool kFar = X::kFar;
  static constexpr int kSums = 2;
  struct Loaded {
    typename G::template Loaded<N> grad_y;
    Vector<typename X::Element, N> x;
  };
  G grad_y;
  X x;
  const A* mu;  // A[C]

  __device__ __forceinline__ A centre(int64_t c) const { return mu[c]; }
  __device__ __forceinline__ Loaded early(int64_t run, int64_t i) const {
    return {grad_y.template load_once<N>(run, i), x.template load_once<N>(run, i)};
  }
  __device__ __forceinline__ void arrive() const {}
  __device__ __forceinline__ void late(int64_t, int64_t, Loaded&) const {}
  __device__ __forceinline__ void get(const Loaded& loaded, const A (&centre)[N], A (&terms)[2][N]) const {
    A values[N];
    loaded.grad_y.get(terms[0]);
    loaded.x.get(values);
#pragma unroll
    for (int k = 0; k < N; ++k) terms[1][k] = terms[0][k] * (values[k] - centre[k]);
  }
};

// grad_y * scale + x * slope + shift
template <class A>
struct Slope {
  A scale, slope, shift;
};
template <class A>
__device__ __forceinline__ Slope<A> select(bool condition, const Slope<A>& a, const Slope<A>& b) {
  return {condition ? a.scale : b.scale, condition ? a.slope : b.slope, condition ? a.shift : b.shift};
}
template <class A>
struct Slopes {
  const A *scale, *slope, *shift;  // A[C] each
  __device__ Slope<A> operator[](int64_t c) const { return {scale[c], slope[c], shift[c]}; }
};

// With grad_y masked: grad_x = grad_y * scale + x * slope + shift, grad_residual = grad_y
struct NormGradient {
  static constexpr int kIn = 2, kOut = 2;
  template <class A>
  __device__ void operator()(const A (&in)[2], const Slope<A>& of, A (&out)[2]) const {
    out[0] = in[0] * of.scale + in[1] * of.slope + of.shift;
    out[1] = in[0];
  }
};

template <class T, Layout L, int N_, bool kStraddle, class Call>
struct NormPass : PassBase<T, L, N_, kStraddle, NormArgs<Accumulator<T>, Call>> {
  using Base = PassBase<T, L, N_, kStraddle, NormArgs<Accumulator<T>, Call>>;
  using Base::args;
  using Base::N;
  using typename Base::A;
  using typename Base::Map;

  // f(n, tile, index of the tile's first channel in args.first and args.second)
  template <class F>
  __device__ void each_tile(F f) const {
    const Tiling& tiling = args.plan.tiling;
    for (int64_t i = blockIdx.x; i < args.problem.n * tiling.count; i += gridDim.x) {
      const int64_t n = i / tiling.count, of_sample = i % tiling.count;
      const Tile tile = tiling.at(of_sample);
      f(n, tile, (n * tiling.blocks + tiling.block(of_sample)) * args.problem.c + tile.c0);
    }
  }
  // f(grad_y), masked if there is a ReLU
  template <class F>
  __device__ void with_gradient(int64_t n, F f) const {
    const Map grad_y = this->map(args.call.grad_y, n);
    if (args.call.signs.data) {
      f(Masked<Map>{grad_y, this->signs(n)});
    } else {
      f(grad_y);
    }
  }
};

// For each channel of each tile: its mean, measured from one element of the channel, the same in all tiles, and the sum
// of squared distances from the mean. Reads x T[N, C, S]; writes these to first and second, A[N, blocks, C], and the
// elements to norm_mean A[C].
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kForward))
    eca_norm_moments_kernel(const __grid_constant__ NormArgs<Accumulator<T>, ForwardCall> args) {
  using A = Accumulator<T>;
  using Pass = NormPass<T, L, N, kStraddle, ForwardCall>;
  const Pass pass{{args}};
  pass.each_tile([&](int64_t n, const Tile& tile, int64_t at) {
    using Term = Moments<N, L, typename Pass::Map>;
    const Term term{pass.map(args.call.x, n), tile.s0, tile.s1}, of_all{pass.map(args.call.x, 0), 0, args.problem.s};
    pass.sums(tile, term, [&](int c, const A(&total)[2]) {
      const A mean = total[0] / static_cast<A>(tile.s1 - tile.s0), squares = total[1] - total[0] * mean;
      const A origin = of_all.centre(tile.c0 + c);
      args.first[at + c] = term.centre(tile.c0 + c) - origin + mean;
      args.second[at + c] = squares < A(0) ? A(0) : squares;
      if (n == 0 && tile.s0 == 0) args.norm_mean[tile.c0 + c] = origin;
    });
  });
}

// y = relu(x * gate + shift + residual)
// Reads x and the residual, T[N, C, S], gate and shift, A[N, C]; writes y T[N, C, S] and, in vectors of 16 bytes, its
// signs (problem.h).
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kForward))
    eca_norm_apply_kernel(const __grid_constant__ NormArgs<Accumulator<T>, ForwardCall> args) {
  using A = Accumulator<T>;
  const NormPass<T, L, N, kStraddle, ForwardCall> pass{{args}};
  pass.each_tile([&](int64_t n, const Tile& tile, int64_t) {
    pass.rescale(n, tile, Affines<A>{pass.of_sample(args.gate, n), pass.of_sample(args.shift, n)});
  });
}

// For each channel of each tile: the sums of grad_y, masked by the ReLU, and of grad_y (x - mu).
// Reads grad_y and x, T[N, C, S], the signs of y and mu A[C]; writes first and second, A[N, blocks, C].
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kBackward))
    eca_norm_dots_kernel(const __grid_constant__ NormArgs<Accumulator<T>, BackwardCall> args) {
  using A = Accumulator<T>;
  using Pass = NormPass<T, L, N, kStraddle, BackwardCall>;
  using Map = typename Pass::Map;
  const Pass pass{{args}};
  const A* const mu = static_cast<const A*>(args.gate_of.norm.mean.data);
  pass.each_tile([&](int64_t n, const Tile& tile, int64_t at) {
    pass.with_gradient(n, [&](const auto& grad_y) {
      const SumAndDot<N, std::decay_t<decltype(grad_y)>, Map> term{grad_y, pass.map(args.call.x, n), mu};
      pass.sums(tile, term, [&](int c, const A(&total)[2]) {
        args.first[at + c] = total[0];
        args.second[at + c] = total[1];
      });
    });
  });
}

// grad_residual = grad_y, masked by the ReLU;   grad_x = grad_residual * gate + x * slope + shift
// Reads grad_y T[N, C, S], the signs of y, gate and shift, A[N, C], and with statistics of x also x T[N, C, S] and
// slope A[C]; writes grad_x and, if wanted, grad_residual, T[N, C, S].
template <class T, Layout L, int N, bool kStraddle>
__global__ void __launch_bounds__(256, two_phase_blocks(Direction::kBackward))
    eca_norm_gradient_kernel(const __grid_constant__ NormArgs<Accumulator<T>, BackwardCall> args) {
  using A = Accumulator<T>;
  const NormPass<T, L, N, kStraddle, BackwardCall> pass{{args}};
  const bool of_batch = (args.problem.flags & kBatchStatistics) != 0;
  pass.each_tile([&](int64_t n, const Tile& tile, int64_t) {
    const A *const scale = pass.of_sample(args.gate, n), *const shift = pass.of_sample(args.shift, n);
    const auto grad_x = pass.map(args.call.grad_x, n), grad_residual = pass.map(args.call.grad_residual, n);
    pass.with_gradient(n, [&](const auto& grad_y) {
      if (of_batch) {
        pass.visit(tile, Slopes<A>{scale, args.slope, shift},
                   visit_of<N>(NormGradient(), grad_y, grad_x, pass.map(args.call.x, n), grad_residual));
      } else {
        pass.visit(tile, Affines<A>{scale, shift}, visit_of<N>(RescaleMasked(), grad_y, grad_x, {}, grad_residual));
      }
    });
  });
}

}  // namespace eca
