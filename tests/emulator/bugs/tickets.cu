// SPDX-License-Identifier: MIT
// Persistent blocks that take tickets, and wait for flags that others set.
#include "device.cuh"

#include <cuda/atomic>

namespace bugs {

using Flag = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;

// For the whole block.
inline __device__ unsigned take_ticket(unsigned* counter) {
  __shared__ unsigned ticket;
  __syncthreads();  // the previous one has been read
  if (threadIdx.x == 0) ticket = Flag(*counter).fetch_add(1, cuda::memory_order_relaxed);
  __syncthreads();
  return ticket;
}

inline __device__ void raise(unsigned* done, Bug bug) {
  if (bug == Bug::plain_flag)
    ++*done;  // [plain]
  else
    Flag(*done).fetch_add(1, bug == Bug::relaxed_flag ? cuda::memory_order_relaxed : cuda::memory_order_release);
}

inline __device__ void await(unsigned* done, unsigned count, Bug bug) {
  if (bug == Bug::flag_never_raised) ++count;
  const auto order = bug == Bug::relaxed_poll ? cuda::memory_order_relaxed : cuda::memory_order_acquire;
  while (Flag(*done).load(order) < count) __nanosleep(100);  // [poll]
}

// Tickets below `items`: sum an item. The others: subtract the mean from it, once all sums are there.
__global__ void __launch_bounds__(kThreads)
    tickets_kernel(const float* __restrict__ x, float* __restrict__ y, float* partial, unsigned* counters, int items,
                   int item, Bug bug) {
  for (;;) {
    const int ticket = take_ticket(&counters[0]);
    if (ticket >= 2 * items) return;
    if (ticket < items) {
      float sum = 0;
      for (int i = threadIdx.x; i < item; i += blockDim.x) sum += x[ticket * item + i];
      sum = block_sum(sum);
      if (threadIdx.x == 0) {
        partial[ticket] = sum;  // [publish]
        raise(&counters[1], bug);
      }
    } else {
      if (threadIdx.x == 0) await(&counters[1], items, bug);
      __syncthreads();  // [behind]
      float mean = 0;
      for (int i = 0; i < items; ++i) mean += partial[i];  // [collect]
      mean /= items * item;
      const int first = (ticket - items) * item;
      for (int i = threadIdx.x; i < item; i += blockDim.x) y[first + i] = x[first + i] - mean;
    }
  }
}

// Turns are tickets: the blocks with earlier ones run or have finished, which block indices would not guarantee.
__global__ void __launch_bounds__(kThreads) chain_kernel(unsigned* y, unsigned* counters, Bug bug) {
  __shared__ unsigned turn;
  if (threadIdx.x == 0) {
    turn = bug == Bug::waits_for_later_block ? (5 * blockIdx.x + 3) % gridDim.x
                                             : Flag(counters[0]).fetch_add(1, cuda::memory_order_relaxed);
    while (Flag(counters[1]).load(cuda::memory_order_acquire) < turn) __nanosleep(100);  // [turn]
    y[turn] = 1 + (turn ? y[turn - 1] : 0);
    Flag(counters[1]).store(turn + 1, cuda::memory_order_release);
    if (bug == Bug::waits_for_later_block) await(&counters[1], gridDim.x, bug);
  }
}

cudaError_t tickets(const float* x, float* y, float* partial, unsigned* counters, int items, int item, int blocks,
                    Bug bug) {
  return launch(tickets_kernel, blocks, 1, 0, x, y, partial, counters, items, item, bug);
}
cudaError_t chain(unsigned* y, unsigned* counters, int blocks, Bug bug) {
  return launch(chain_kernel, blocks, 1, 0, y, counters, bug);
}

}  // namespace bugs
