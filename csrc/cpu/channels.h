// SPDX-License-Identifier: MIT
// L1. The executor of the gates on the CPU (its contract is in gates/gate.h): one thread, 16 channels at a time.
#pragma once
#include "reduce.h"

// With ECA_CUDA_DEBUG=1: stops a gate that takes more than it needs, before it overwrites memory.
#ifdef ECA_CHECKS
#define ECA_EXPECT(condition) \
  if (!(condition)) __builtin_trap()
#else
#define ECA_EXPECT(condition) static_cast<void>(0)
#endif

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct Channels {
  using Value = Pack<A>;
  struct At {
    int64_t index;
    int lanes;  // fewer than 16 in the last step
  };

  const GateArgs<A>& args;
  const GateNeeds needs;
  int64_t count;
  A *free, *arrays, *scratch;  // in memory: the next of A[pads, padded_size], A[arrays, C], A[needs.scratch]

  Channels(const GateArgs<A>& args_, const GateNeeds& needs_, A* memory)
      : args(args_),
        needs(needs_),
        count(args_.shape.channels),
        free(memory),
        arrays(memory + needs.pads * padded_size(args_.shape)),
        scratch(arrays + needs.arrays * count) {}

  template <class Body>
  void each(Body body) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) body(At{i, kLanes});
    if (i < count) body(At{i, static_cast<int>(count - i)});
  }

  Value load(const A* p, At c) const { return read(p + c.index, c.lanes); }
  const A* numbers(int i) const { return args.parameters[i]; }
  Value weight(int i, int64_t j, At c) const { return load(args.parameters[i] + j * count, c); }
  A* array(int i) const {
    ECA_EXPECT(i < needs.arrays);
    return arrays + i * count;
  }
  void store(A* p, At c, Value value) const { write(p + c.index, value, c.lanes); }

  // Padding is not multiplied: 0 times an infinite value would be NaN.
  Value product(Value value, const A* padded, At c, int64_t j, int64_t half) const {
    const Value all = value * eca::load(padded + c.index + j);
    const int64_t first = c.index + j - half;  // the channel of lane 0
    const bool inside = args.shape.circular() || (first >= 0 && first + kLanes <= count);
    return __builtin_expect(inside, 1) ? all : without_padding(all, first);
  }

  template <class Term>
  A sum(Term term) {
    Value total = Value(0);
    each([&](At c) {
      const Value value = term(c);
      if (c.lanes == kLanes) {
        total = total + value;
      } else {  // lanes past the last channel may hold anything, NaN included
        A lane[kLanes];
        eca::store(lane, value);
        total = total + load_partial(lane, c.lanes);
      }
    });
    return eca::sum(total);
  }

  template <class Term>
  void sums(int64_t rows, A* out, Term term) {
    ECA_EXPECT(summed < 2 && rows <= needs.sums[summed++]);
    keep_sums(rows, out, term);
  }

  template <class Body>
  void times(int64_t numbers, Body body) {
    for (int64_t j = 0; j < numbers; ++j) body(j);
  }

  // Four rows per visit of `out`, A[C]: each row of C numbers is contiguous.
  template <class Factor>
  void add_rows(int i, int64_t rows, Factor factor, A* out) {
    for (int64_t j = 0; j < rows; j += 4) {
      each([&](At c) {
        Value total = load(out, c);
        for (int64_t r = j; r < rows && r < j + 4; ++r) total = total + Value(factor(r)) * weight(i, r, c);
        store(out, c, total);
      });
    }
  }

  template <class Number>
  void keep(int64_t numbers, A* p, Number number) {
    times(numbers, [&](int64_t j) { p[j] = number(j); });
  }
  template <class Term>
  void keep_sums(int64_t rows, A* p, Term term) {
    for (int64_t j = 0; j < rows; ++j) p[j] = sum([&](At c) { return term(j, c); });
  }
  template <class Number>
  void keep_each(A* p, Number number) {
    each([&](At c) { store(p, c, number(c)); });
  }

  const A* pad_means(const A* means, int64_t half, bool circular) { return pad(means, half, circular); }
  const A* pad(const A* values, int64_t half, bool circular) {
    ECA_EXPECT(padded++ < needs.pads);
    A* const out = free;
    free += padded_size(args.shape);
    std::memcpy(out + half, values, count * sizeof(A));
    for (int64_t i = 0; i < half; ++i) {
      const int64_t left = padded_channel(i - half, count, circular),
                    right = padded_channel(count + i, count, circular);
      out[i] = left < 0 ? A(0) : values[left];
      out[half + count + i] = right < 0 ? A(0) : values[right];
    }
    for (int i = 0; i < kLanes; ++i) out[2 * half + count + i] = A(0);
    return out;
  }

 private:
  int padded = 0, summed = 0;  // calls so far, for ECA_EXPECT

  // Rare, so kept out of the loops over taps.
  __attribute__((noinline)) Value without_padding(Value all, int64_t first) const {
    const Value from_first = select(from_lane<A>(lanes_in(-first)), all, Value(0));
    return select(from_lane<A>(lanes_in(count - first)), Value(0), from_first);
  }
  static int lanes_in(int64_t n) { return static_cast<int>(n < 0 ? 0 : n < kLanes ? n : kLanes); }
};

}  // namespace ECA_TARGET
}  // namespace eca
