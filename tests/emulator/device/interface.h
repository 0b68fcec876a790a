// SPDX-License-Identifier: MIT
// What the device API (device/) calls in the runtime (runtime/).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// The caller's file and line, as a function's last parameter.
#define EMULATOR_HERE emulator::Where where = emulator::Where::current()

namespace emulator {

using Where = std::source_location;

// Misuse of the device by a kernel: thrown by the launch, never returned as an error.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(const char* problem, Where);

cudaError_t launch(const cudaLaunchConfig_t&, const void* kernel, const std::function<void()>& body);

// Returns after all other resident threads could run.
void poll(const char* what, Where);

// Returns the number of threads of the block whose predicate is true.
int syncthreads(bool predicate, Where);
void syncwarp(unsigned mask, Where);
struct Lanes {
  unsigned valid;  // lanes that took part
  unsigned self;
  uint64_t value[32];
};
Lanes exchange(unsigned mask, uint64_t value, Where);

void cluster_arrive(Where);
void cluster_wait(Where);
unsigned cluster_rank();
unsigned cluster_size();
void* map_shared(const void* address, unsigned rank, Where);

void fence();
void before_atomic(const void*);
void after_atomic(const void*);

void mbarrier_init(uint64_t*, unsigned count, Where);
uint64_t mbarrier_arrive(uint64_t*, unsigned count, unsigned transaction_bytes, Where);
bool mbarrier_test(uint64_t*, unsigned parity, Where);
bool mbarrier_wait(uint64_t*, unsigned parity, Where);
void push(void* shared, const void* value, unsigned bytes, uint64_t* mbarrier, Where);
void bulk_load(void* shared, const void* source, unsigned bytes, uint64_t* mbarrier, Where);
void bulk_store(void* global, const void* shared, unsigned bytes, Where);
void bulk_commit();
void bulk_wait(unsigned groups_left, Where);
void fence_proxy_async();

void thread_load(void* shared, const void* source, unsigned bytes, Where);
void thread_load_commit();
void thread_load_wait(unsigned groups_left, Where);
void count_load(unsigned bytes);
void count_store(unsigned bytes);

}  // namespace emulator

// For ctypes. Schedules: 0 runs clusters one after another in index order, 1 all at once in reverse, any
// other number in an order drawn from it. `shared_bytes_per_block` is the limit that needs opting in to.
#pragma GCC visibility push(default)
extern "C" {
void emulator_set_schedule(unsigned schedule);
void emulator_set_device(int multiprocessors, int max_threads_per_block, int shared_bytes_per_block, int l2_bytes,
                         int compute_capability);
long emulator_launches();  // so far
long emulator_blocks();    // of all of them
long emulator_loaded();    // this and the following: Counters in runtime/machine.h
long emulator_stored();
long emulator_pushed();
long emulator_barriers();
}
#pragma GCC visibility pop
