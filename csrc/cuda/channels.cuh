// SPDX-License-Identifier: MIT
// L1. The executors of the gates on a GPU (their contract is in gates/gate.h): a channel for each thread. Every step
// except keep, keep_sums and keep_each ends with a barrier, so all threads see its results.
#pragma once
#include <type_traits>

#include "block.cuh"
#include "vector.cuh"

namespace eca {

// One block with all channels or a part of them: `own` channels from `first` on. Its memory may be shared or global.
template <class A, class Index>
struct BlockChannels {
  using Value = A;

  const GateParameters& gate;
  Index first, own;
  A* arrays;     // A[..][stride]: those of the kernel, then the gate's
  Index stride;  // own channels and `half` neighbours on each side
  A* few;        // A[GateParameters::numbers]: the parameters that are a few numbers
  A* scratch;    // A[GateNeeds::scratch]
  int reserved;  // arrays of the kernel

  // Element c of an array belongs to channel c.
  __device__ A* kernel_array(int i) const { return arrays + i * stride + gate.shape.half() - first; }
  __device__ A* array(int i) const { return kernel_array(reserved + i); }

  // Reads the parameters that are a few numbers, as the accumulator's type. All threads see them after the next
  // barrier.
  __device__ void load_numbers() const {
    for (int i = 0; i < kMaxParameters; ++i) {
      const ParameterView& from = gate.views[i];
      if (gate.numbers_at[i] < 0 || !from.data) continue;
      for (int j = threadIdx.x; j < from.count; j += blockDim.x) few[gate.numbers_at[i] + j] = read<A>(from, j);
    }
  }
  __device__ const A* numbers(int i) const { return gate.views[i].data ? few + gate.numbers_at[i] : nullptr; }
  __device__ A weight(int i, int64_t j, Index c) const { return read<A>(gate.views[i], j, c); }

  __device__ A load(const A* p, Index c) const { return p[c]; }
  __device__ void store(A* p, Index c, A value) const { p[c] = value; }
  __device__ A product(A value, const A* padded, Index c, int j, int half) const {
    const Index channel = c + j - half;
    // One comparison of unsigned numbers: with two signed ones a kernel spills.
    using Unsigned = std::make_unsigned_t<Index>;
    const bool exists =
        gate.shape.circular() || static_cast<Unsigned>(channel) < static_cast<Unsigned>(gate.shape.channels);
    return exists ? value * padded[c + j] : A(0);
  }

  template <class Body>
  __device__ void times(int count, Body body) const {
#pragma unroll 1
    for (int j = threadIdx.x; j < count; j += blockDim.x) body(j);
    __syncthreads();
  }
  template <class Body>
  __device__ void each(Body body) const {
    each_channel(body);
    __syncthreads();
  }

  template <class Term>
  __device__ void sums(int count, A* out, Term term) const {
    each_sum(count, term, [&](int j, A total, int lane) {
      if (lane == 0) out[j] = total;
    });
    __syncthreads();
  }

  template <class Factor>
  __device__ void add_rows(int i, int rows, Factor factor, A* out) const {
    each([&](Index c) {
      A total = out[c];
#pragma unroll 2
      for (int j = 0; j < rows; ++j) total += factor(j) * weight(i, j, c);
      out[c] = total;
    });
  }

  template <class Number>
  __device__ void keep(int count, A* p, Number number) const {
    for (int j = threadIdx.x; j < count; j += blockDim.x) p[j] = number(j);
  }
  template <class Term>
  __device__ void keep_sums(int count, A* p, Term term) const {
    each_sum(count, term, [&](int j, A total, int lane) {
      if (lane == 0) p[j] = total;
    });
  }
  template <class Number>
  __device__ void keep_each(A* p, Number number) const {
    each_channel([&](Index c) { p[c] = number(c); });
  }

  // In place: arrays have room for the halo.
  __device__ const A* pad(const A* values, int half, bool circular) const {
    A* const array = const_cast<A*>(values);
    times(2 * half, [&](int i) {
      const Index c = first + (i < half ? i - half : own + i - half);
      const Index from = padded_channel(c - first, own, circular);
      array[c] = from < 0 ? A(0) : array[first + from];
    });
    return values - half;
  }
  __device__ const A* pad_means(const A* means, int half, bool circular) const { return pad(means, half, circular); }

 protected:
  template <class Body>
  __device__ void each_channel(Body body) const {
#pragma unroll 1
    for (Index i = threadIdx.x; i < own; i += blockDim.x) body(first + i);
  }

  // done(j, sum of term(j, c) over the own channels, lane), by all lanes of a warp.
  template <class Term, class Done>
  __device__ void each_sum(int count, Term term, Done done) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int j = threadIdx.x / kWarp; j < count; j += blockDim.x / kWarp) {
      A total = 0;
#pragma unroll 2
      for (Index i = lane; i < own; i += kWarp) total += term(j, first + i);
      done(j, sum_of_lanes(total, kWarp), lane);
    }
  }
};

// The blocks (CTAs) of a cluster, which divide the channels of a sample; each has its part in shared memory. They
// exchange numbers by pushes into each other's shared memory, which an mbarrier of the receiver counts. Each exchange
// has its own mbarrier and memory, so nothing is overwritten; and the receiver waits, so no block ends while others
// push to it.
//
// If blocks also divide the positions, those with the same positions form a row of `blocks` blocks from rank `row` on,
// which computes the gate by itself.
struct ClusterChannels : BlockChannels<float, int> {
  using A = float;
  using Base = BlockChannels<float, int>;

  int blocks, block, row;  // of the row: the number of blocks, the index of this one, the rank of the first
  int channels;            // of every block but the last one
  uint64_t* barriers;      // uint64_t[kMaxExchanges]: mbarriers
  A* room;                 // A[..]: the numbers that blocks push here
  bool has_means = false;  // with the halo
  int step = 0, used = 0;  // barriers (a compile-time constant) and numbers of room that exchanges have used

  template <class Term>
  __device__ void sums(int count, A* out, Term term) {
    uint64_t *const barrier = next(), *const gathered = next();
    if (blocks == 1) return Base::sums(count, out, term);
    if (count == 0) return;
    // All-reduce. If there are many sums, each block adds up some of them and pushes these to the others.
    const int each = sums_of_block(count, blocks);
    const bool few = each == count;
    const int first_sum = few ? 0 : min(block * each, count), mine = min(each, count - first_sum);
    A* const partial = take(blocks * each);  // [blocks][each]
    expect(barrier, blocks * mine);
    each_sum(count, term, [&](int j, A total, int lane) {
      if (few) {
        if (lane < blocks) push(partial + block * each + j, total, lane, barrier);
      } else if (lane == 0) {
        push(partial + block * each + j % each, total, j / each, barrier);
      }
    });
    ptx::wait_for_pushes(barrier);
    const auto total_of = [&](int j) {
      A total = partial[j];
      for (int q = 1; q < blocks; ++q) total += partial[q * each + j];
      return total;
    };
    if (few) return times(count, [&](int j) { out[j] = total_of(j); });
    expect(gathered, count);
    for (int i = threadIdx.x; i < mine * blocks; i += blockDim.x)
      push(out + first_sum + i / blocks, total_of(i / blocks), i % blocks, gathered);
    ptx::wait_for_pushes(gathered);
  }

  __device__ const A* pad_means(const A* means, int half, bool circular) {
    return has_means ? means - half : pad(means, half, circular);
  }

  // The halo: the neighbours' outermost channels.
  __device__ const A* pad(const A* values, int half, bool circular) {
    uint64_t* const barrier = next();
    if (half == 0) return values;
    if (blocks == 1) return Base::pad(values, half, circular);
    A* const array = const_cast<A*>(values);
    const bool has_left = circular || block > 0, has_right = circular || block + 1 < blocks;
    const int left = block > 0 ? block - 1 : blocks - 1, right = block + 1 < blocks ? block + 1 : 0;
    const int left_own = left + 1 < blocks ? channels : static_cast<int>(gate.shape.channels) - left * channels;
    expect(barrier, (has_left + has_right) * half);
    for (int i = threadIdx.x; i < half; i += blockDim.x) {
      // An array has the same offset in every block; a block's own element i is array[first + i].
      if (has_left) push(array + first + left_own + i, array[first + i], left, barrier);
      if (has_right) push(array + first - half + i, array[first + own - half + i], right, barrier);
      if (!has_left) array[first - half + i] = 0;
      if (!has_right) array[first + own + i] = 0;
    }
    ptx::wait_for_pushes(barrier);
    __syncthreads();
    return values - half;
  }

  // Reads this block's part of the means, A[C], with the halo. All threads see it after the next barrier.
  __device__ void load_means(const A* means) {
    A* const array = kernel_array(0);
    for (int i = threadIdx.x; i < own + 2 * gate.shape.half(); i += blockDim.x) {
      const int c = first - gate.shape.half() + i;
      const int from = padded_channel(c, static_cast<int>(gate.shape.channels), gate.shape.circular());
      array[c] = from < 0 ? A(0) : means[from];
    }
    has_means = true;
  }

  // Sums values, A[own], over the `rows` parts of a strip's positions, and divides by `divisor`; this block is `part`.
  __device__ void add_parts(A* values, int rows, int part, A divisor) {
    A* const all = take(rows * channels);  // [rows][channels]
    uint64_t* const barrier = next();
    expect(barrier, rows * own);
    for (int i = threadIdx.x; i < rows * own; i += blockDim.x) {
      const int q = i / own, c = i % own;
      ptx::push(all + part * channels + c, values[c], q * blocks + block, barrier);
    }
    ptx::wait_for_pushes(barrier);
    __syncthreads();  // all have read what is now overwritten
    times(own, [&](int c) {
      A total = all[c];
      for (int q = 1; q < rows; ++q) total += all[q * channels + c];
      values[c] = total / divisor;
    });
  }

  template <class Number>
  __device__ void keep(int count, A* p, Number number) const {
    Base::keep(block == 0 ? count : 0, p, number);
  }

 private:
  __device__ A* take(int numbers) {
    used += numbers;
    return room + used - numbers;
  }
  __device__ uint64_t* next() {
    if (step == kMaxExchanges) __trap();
    return barriers + step++;
  }
  // Announces how many numbers the blocks will push here.
  __device__ void expect(uint64_t* barrier, int numbers) const {
    if (threadIdx.x == 0) ptx::mbarrier_expect(barrier, static_cast<uint32_t>(numbers * sizeof(A)));
  }
  __device__ void push(A* to, A value, int q, uint64_t* barrier) const { ptx::push(to, value, row + q, barrier); }
};

}  // namespace eca
