// SPDX-License-Identifier: MIT
// L1. The kernels that read and write feature maps (kernels.h says what they compute), for one dtype and layout.
#pragma once
#include "reduce.h"
#include "signs.h"
#include "walk.h"

namespace eca {
inline namespace ECA_TARGET {

template <class T, Layout L>
struct Maps {
  using A = Accumulator<T>;
  using P = Pack<A>;

  static void pool(SampleView x, Tile tile, void* sums) {
    reduce<1>(tile, {sums},
              [=](int64_t run, int64_t i, int n, P(&out)[1]) ECA_INLINE { out[0] = read(at(x, run) + i, n); });
  }

  // Two passes over the tile, the second from a cache: squares do not cancel, whatever the mean is.
  static void moments(SampleView x, Tile tile, void* means_, void* squares) {
    A* const means = static_cast<A*>(means_);
    pool(x, tile, means);
    for (int64_t c = tile.c0; c < tile.c1; ++c) means[c] /= static_cast<A>(tile.s1 - tile.s0);
    reduce<1>(tile, {squares}, [=](int64_t run, int64_t i, int n, P(&out)[1]) ECA_INLINE {
      const P away = read(at(x, run) + i, n) - of_channels(means, run, i, n);
      out[0] = away * away;
    });
  }

  static void dot(const DotArgs& args, Tile tile, void* products) {
    args.signs.data ? dot_as<true>(args, tile, products) : dot_as<false>(args, tile, products);
  }

  static void dots(const DotArgs& args, Tile tile, void* sums, void* products) {
    args.signs.data ? dots_as<true>(args, tile, sums, products) : dots_as<false>(args, tile, sums, products);
  }

  static void rescale(const RescaleArgs& args, Tile tile) {
    args.shift ? rescale_with<true>(args, tile) : rescale_with<false>(args, tile);
  }

  static void gradient(const GradientArgs& args, Tile tile) {
    args.slope ? gradient_with<true>(args, tile) : gradient_with<false>(args, tile);
  }

 private:
  static T* at(SampleView map, int64_t run) { return static_cast<T*>(map.data) + run * map.stride; }

  // The numbers of the channels of elements i .. i + n of a run.
  static P of_channels(const A* numbers, int64_t run, int64_t i, int n) {
    return L == Layout::kRows ? read(numbers + i, n) : P(numbers[run]);
  }

  // value as T will hold it.
  static P rounded(P value) {
    T stored[kLanes];
    store(stored, value);
    return load(stored);
  }

  static void put(T* p, P value, int n, bool streaming) {
    const bool whole = n == kLanes && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(T)) == 0;
    if (streaming && whole) {
      store_streaming(p, value);
    } else {
      write(p, value, n);
    }
  }

  // grad_y where the signs are set, else zero.
  template <bool Signs>
  static P masked(SampleSigns signs, int64_t e, int n, P grad_y) {
    if constexpr (Signs) return select(mask_of<A>(load_signs(signs.data, e, n)), grad_y, P(0));
    return grad_y;
  }

  template <int K, class Term>
  static void reduce(Tile tile, void* const (&sums)[K], Term term) {
    A* out[K];
    for (int k = 0; k < K; ++k) out[k] = static_cast<A*>(sums[k]);
    Reduce<A, L>::template sums<K>(tile, out, term);
  }

  template <bool Signs>
  static void dot_as(const DotArgs& args, Tile tile, void* products) {
    const SampleView grad_y = args.grad_y, x = args.x;
    const SampleSigns signs = args.signs;
    reduce<1>(tile, {products}, [=](int64_t run, int64_t i, int n, P(&out)[1]) ECA_INLINE {
      const P grad = masked<Signs>(signs, run * signs.length + i, n, read(at(grad_y, run) + i, n));
      out[0] = grad * read(at(x, run) + i, n);
    });
  }

  template <bool Signs>
  static void dots_as(const DotArgs& args, Tile tile, void* sums, void* products) {
    const SampleView grad_y = args.grad_y, x = args.x;
    const SampleSigns signs = args.signs;
    const A* const centre = static_cast<const A*>(args.centre);
    reduce<2>(tile, {sums, products}, [=](int64_t run, int64_t i, int n, P(&out)[2]) ECA_INLINE {
      out[0] = masked<Signs>(signs, run * signs.length + i, n, read(at(grad_y, run) + i, n));
      out[1] = out[0] * (read(at(x, run) + i, n) - of_channels(centre, run, i, n));
    });
  }

  template <bool Shift>
  static void rescale_with(const RescaleArgs& args, Tile tile) {
    if (args.residual.data) {
      args.relu ? rescale_as<Shift, true, true>(args, tile) : rescale_as<Shift, true, false>(args, tile);
    } else {
      args.relu ? rescale_as<Shift, false, true>(args, tile) : rescale_as<Shift, false, false>(args, tile);
    }
  }

  template <bool Shift, bool Residual, bool Relu>
  static void rescale_as(const RescaleArgs& args, Tile tile) {
    const SampleView maps[] = {args.y, args.x, args.residual};
    const bool streaming = args.streaming;
    const SampleSigns signs = args.signs;
    const auto body = [=](T* const* p, int64_t i, int n, int64_t e, const auto& numbers) ECA_INLINE {
      P value = read(p[1] + i, n) * numbers[0];
      if constexpr (Shift) value = value + numbers[1];
      if constexpr (Residual) value = value + read(p[2] + i, n);
      if constexpr (Relu) {
        if (signs.data) value = rounded(value);  // what underflows to zero is not above it
        const Mask<A> off = value <= P(0);
        value = select(off, P(0), value);
        if (signs.data) store_signs(signs.data, e, n, ~bits_of(off));
      }
      put(p[0] + i, value, n, streaming);
    };
    if constexpr (Shift) {
      Walk<T, L>::each(tile, signs.length, maps, {args.gate, args.shift}, body);
    } else {
      Walk<T, L>::each(tile, signs.length, maps, {args.gate}, body);
    }
    if (streaming) end_streaming();
  }

  template <bool Slope>
  static void gradient_with(const GradientArgs& args, Tile tile) {
    if (!args.signs.data) {
      gradient_as<Slope, false, false>(args, tile);
    } else {
      args.grad_residual.data ? gradient_as<Slope, true, true>(args, tile)
                              : gradient_as<Slope, true, false>(args, tile);
    }
  }

  template <bool Slope, bool Signs, bool GradResidual>
  static void gradient_as(const GradientArgs& args, Tile tile) {
    const SampleView maps[] = {args.grad_x, args.grad_y, args.x, args.grad_residual};
    const bool streaming = args.streaming;
    const SampleSigns signs = args.signs;
    const auto body = [=](T* const* p, int64_t i, int n, int64_t e, const auto& numbers) ECA_INLINE {
      const P grad = masked<Signs>(signs, e, n, read(p[1] + i, n));
      if constexpr (GradResidual) put(p[3] + i, grad, n, streaming);
      P value = grad * numbers[0];
      if constexpr (Slope) value = value + read(p[2] + i, n) * numbers[2];
      put(p[0] + i, value + numbers[1], n, streaming);
    };
    if constexpr (Slope) {
      Walk<T, L>::each(tile, signs.length, maps, {args.gate, args.shift, args.slope}, body);
    } else {
      Walk<T, L>::each(tile, signs.length, maps, {args.gate, args.shift}, body);
    }
    if (streaming) end_streaming();
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
