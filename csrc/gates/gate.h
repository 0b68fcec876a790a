// SPDX-License-Identifier: MIT
// L0. The contract of a gate with its executor. Each gate is one file beside this one, a struct template Gate<A> with
//
//   shape                           const GateShape&, the first member; all others have defaults
//   kName                           of the variant: its operators are <name>_infer, <name>_forward, <name>_backward
//   kParameters                     the name and the shape of each parameter, in the order of the operators' arguments
//   forward (x, mean, gate)         computes the gates of one sample from its means
//   backward(x, mean, gate, grad)   computes the gates again; grad holds dL/dgate, and dL/dmean afterwards
//   record  (x, to)                 after backward: writes what the gradients of the parameters need of this sample
//   gradients(shape, out)           says how each parameter's gradient follows from the records
//   needs(shape, backward)          says what memory forward, or backward with record, takes
//
// mean, gate and grad are A[C]. x is the executor: it owns the loops (16 channels at a time on the CPU, one for each
// thread of a block on a GPU), so a gate is written once. What load and weight return is an X::Value; a number joins in
// as X::Value(number). It offers
//
//   each(f)                      f(c) for all channels; c is passed on to load(p, c) and store(p, c, value)
//   times(count, f)              f(j) for the numbers j of [0, count), in any order
//   sums(count, out, f)          out[j] = sum of f(j, c) over the channels; out is scratch that no other sums writes.
//   At
//                                most twice in a pass, with the counts of `needs`
//   array(i)                     a number for each channel, i < arrays
//   scratch                      `scratch` numbers to use freely
//   pad(p, half, circular)       array p with `half` neighbours on each side: padded[c + j] is channel c + j - half
//   pad_means(mean, half, ...)   the same for the means; pad and pad_means together at most `pads` times
//   product(v, padded, c, j, half)  v * padded[c + j], and 0 beyond the first and last channel, whatever v is
//   numbers(i)                   parameter i, if it is a few numbers; null where optional and absent
//   weight(i, j, c)              element [j, c] of parameter i, if it has rows of C; [C] is one row
//   add_rows(i, count, f, out)   out[c] += sum over the rows j < count of f(j) * weight(i, j, c)
//   keep(count, p, f)            p[j] = f(j);                            for record: p is a part of to.sample
//   keep_sums(count, p, f)       p[j] = sum of f(j, c) over the channels; for record: p is a part of to.block
//   keep_each(p, f)              p[c] = f(c);                            for record: p is to.channel
//
// Each step, and code between steps, sees what earlier steps have stored, but nothing that was kept. In record the
// arrays and the scratch of backward are still there. The blocks of a cluster may divide the channels. Then a block's
// arrays, means and gates hold its own channels, and pad brings the halo, `half` more on each side; sums are
// all-reduced over the blocks; keep_sums adds up a block's own channels. On a GPU record runs after the feature maps
// have been written, so no step waits for it.
#pragma once
#include "../options.h"
#include "math.h"

namespace eca {
inline namespace ECA_TARGET {

// Bounds kernel_size and hidden: kernels hold small multiples of them in an int.
constexpr int64_t kMostRows = int64_t{1} << 28;

// A size in the shape of a parameter that is not a number.
enum Size : int {
  kC = -1,        // the number of channels
  kTaps = -2,     // k, odd, the same in all shapes of a gate
  kHidden = -3,   // any, the same in all shapes of a gate
  kBranches = -4  // C, of a depthwise kernel whose centre taps alone act; 1 with kCrossChannel
};

// A parameter as the operators take it. Unused sizes are 0. Python checks shapes by the same description.
struct Parameter {
  const char* name;
  int sizes[4];
  bool optional;

  constexpr int dim() const { return sizes[1] == 0 ? 1 : sizes[2] == 0 ? 2 : sizes[3] == 0 ? 3 : 4; }
};

// The sizes that determine a gate's memory and parameters.
struct GateShape {
  int64_t channels;  // of the map, also where blocks divide them
  int kernel_size;   // the largest k of parameters [., 1, k]; 1 without any
  int hidden;        // both below kMostRows
  int64_t flags;

  ECA_HD bool circular() const { return (flags & kCircular) != 0; }
  ECA_HD bool hard() const { return (flags & kHardSigmoid) != 0; }
  ECA_HD int half() const { return kernel_size / 2; }
};

// How the gradient of a parameter follows from the samples' records. Samples n and blocks b are added in their order.
// A parameter is a few numbers, or it has rows of C; those may lie as columns: [C, rows].
enum class Combine : int {
  kBlocks,  // a few numbers:  grad[i]    = sum_n sum_b block[n][b][offset + i]
  kSum,     // a few numbers:  grad[i]    = sum_n sample[n][offset + i]
  kMean,    // rows of C:      grad[r, c] = sum_n sample[n][offset + r] * mean[n][c]
  kChannel  // rows of C:      grad[r, c] = sum_n sample[n][offset + r] * channel[n][c]
};

struct Gradient {
  Combine how;
  int64_t offset, count;  // offset: in the block's record (kBlocks) or the sample's; count: of numbers, or of rows

  ECA_HD bool has_rows() const { return how == Combine::kMean || how == Combine::kChannel; }
};

// Where `record` writes: A[sample_record] of this sample, A[block_record] of this block (GateFacts), A[C].
template <class A>
struct Record {
  A *sample, *block, *channel;
};

struct GateNeeds {
  int arrays, pads;
  int sums[2];  // the count of each of its calls of x.sums; 0 for no call
  int64_t scratch;
};

// z[c] = sum_j w[j] * m[c + j - half] for the channels of c; w: A[kernel_size]; padded: m from x.pad.
template <class X, class A, class C>
ECA_HD auto convolve(X& x, const A* w, int kernel_size, const A* padded, C c) {
  using V = typename X::Value;
  const int half = kernel_size / 2;
  V z = x.product(V(w[0]), padded, c, 0, half);
  ECA_ROLLED for (int j = 1; j < kernel_size; ++j) z = z + x.product(V(w[j]), padded, c, j, half);
  return z;
}

// The transpose: dm[c] = sum_j w[j] * dz[c - j + half]; w: A[kernel_size]; padded: dz from x.pad.
template <class X, class A, class C>
ECA_HD auto convolve_transposed(X& x, const A* w, int kernel_size, const A* padded, C c) {
  using V = typename X::Value;
  const int last = kernel_size - 1, half = kernel_size / 2;
  V dm = x.product(V(w[0]), padded, c, last, half);
  ECA_ROLLED for (int j = 1; j < kernel_size; ++j) dm = dm + x.product(V(w[j]), padded, c, last - j, half);
  return dm;
}

}  // namespace ECA_TARGET
}  // namespace eca
