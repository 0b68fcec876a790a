// SPDX-License-Identifier: MIT
// A CUDA thread is a fiber: a stack of its own, switched to by hand (10 ns; swapcontext takes 180 ns, and
// AddressSanitizer's version of it clears the stack's red zones).
#include "machine.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern "C" {
// Saves the current stack pointer and resumes another one.
__attribute__((visibility("hidden"))) void emulator_switch(void** save, void* resume);
asm(R"(
.text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
}

namespace emulator {

Launch* running = nullptr;
Thread* self = nullptr;

void switch_to_thread(Thread& thread) {
  self = &thread;
  enter_block(thread.block);
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  void* fake_stack = nullptr;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(&fake_stack, thread.stack + kPageBytes, kStackBytes - kPageBytes);
  Party::become(thread.party.handle());
  emulator_switch(&running->stack_pointer, thread.stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
  self = nullptr;
  enter_block(nullptr);
}

void switch_to_scheduler() {
  Thread& thread = *self;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(thread.exited ? nullptr : &thread.fake_stack, running->stack_bottom,
                                   running->stack_size);
  Party::become(running->party);
  emulator_switch(&thread.stack_pointer, running->stack_pointer);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(thread.fake_stack, &running->stack_bottom, &running->stack_size);
}

namespace {

void thread_main() {
  Thread& thread = *self;
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &running->stack_bottom, &running->stack_size);
  thread.started = true;
  running->start.acquire();
  thread.block->start.acquire();
  try {
    (*running->body)();
    const IgnoreAccesses ignore;
    exit_thread(thread);
  } catch (const Cancelled&) {
  } catch (...) {
    if (!running->error) running->error = std::current_exception();
  }
  thread.exited = true;
  thread.block->finish.release();
  running->finish.release();
  switch_to_scheduler();
  __builtin_unreachable();
}

}  // namespace

void prepare_stack(Thread& thread) {
  unpoison(thread.stack, kStackBytes);
  // Stacks that begin at the same offset of a page would compete for the same cache sets.
  const size_t colour = thread.rank % 32 * 128;
  auto top = reinterpret_cast<void**>(thread.stack + kStackBytes - colour);
  *--top = nullptr;  // aligns the stack as at a call
  *--top = reinterpret_cast<void*>(&thread_main);
  thread.stack_pointer = top - 6;
}

}  // namespace emulator
