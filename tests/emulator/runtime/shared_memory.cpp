// SPDX-License-Identifier: MIT
// `__shared__` variables are thread-local, and this library's thread-local variables belong to the running block: each
// block has an image of them, and __tls_get_addr, which the compiler calls to find them, returns the address in it.
#include "machine.h"

#include <dlfcn.h>
#include <link.h>

namespace {
constexpr size_t kGuardBytes = 1024;
}

// Dynamic shared memory, between guards: kernels declare `extern __shared__ unsigned char dynamic_shared_memory[]`.
extern "C" {
thread_local __align__(1024) unsigned char emulator_dynamic[kGuardBytes + emulator::kMaxDynamicBytes + kGuardBytes];
}
asm(".globl dynamic_shared_memory; .type dynamic_shared_memory, @tls_object; .size dynamic_shared_memory, 227 * 1024;"
    ".hidden dynamic_shared_memory; .set dynamic_shared_memory, emulator_dynamic + 1024");

namespace emulator {

Block* resident = nullptr;

namespace {

struct Image {
  size_t module, bytes, dynamic;  // `dynamic`: the offset of dynamic shared memory
};

// Offsets come from the loader: the compiler may keep the address of a thread-local variable while `resident` changes.
int find(dl_phdr_info* info, size_t, void* result) {
  const auto here = reinterpret_cast<ElfW(Addr)>(&find);
  bool ours = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const auto first = info->dlpi_addr + segment.p_vaddr;
    ours |= segment.p_type == PT_LOAD && first <= here && here < first + segment.p_memsz;
  }
  if (!ours) return 0;
  for (int i = 0; i < info->dlpi_phnum; ++i)
    if (info->dlpi_phdr[i].p_type == PT_TLS) {
      const auto data = static_cast<unsigned char*>(info->dlpi_tls_data);
      *static_cast<Image*>(result) = {info->dlpi_tls_modid, info->dlpi_phdr[i].p_memsz,
                                      size_t(emulator_dynamic + kGuardBytes - data)};
    }
  return 1;
}

const Image image = [] {
  Image found{};
  *static_cast<volatile unsigned char*>(emulator_dynamic) = 0;  // allocates this thread's own image
  dl_iterate_phdr(find, &found);
  return found;
}();

// The parts of a block's image that are its shared memory: all but the guards and what a launch leaves unused.
template <typename Action>
void for_shared(Block& block, Action action) {
  char* const data = block.shared.data;
  const size_t end = image.dynamic + kMaxDynamicBytes + kGuardBytes;
  action(data, image.dynamic - kGuardBytes);
  action(data + image.dynamic, running->dynamic_bytes);
  action(data + end, image.bytes - end);
}

}  // namespace

size_t image_bytes() { return image.bytes; }

// Both fills are writes by the hardware, ordered with the block's own threads only: if another block reads too early or
// too late, that is a race.
void prepare_shared(Block& block) {
  block.hardware.act([&] {
    running->start.acquire();
    unpoison(block.shared.data, block.shared.bytes);
    for_shared(block, fill);
    poison(block.shared.data, block.shared.bytes);
    block.start.release();
  });
}

void hand_out(Block& block) { for_shared(block, unpoison); }

void reclaim(Block& block) {
  block.hardware.act([&] {
    block.finish.acquire();
    for_shared(block, fill);
    poison(block.shared.data, block.shared.bytes);
  });
}

namespace {
// Of the system thread that launches: others keep their own thread-local variables while a kernel runs.
void* kernel_thread_pointer = nullptr;
}  // namespace

void enter_block(Block* block) {
  kernel_thread_pointer = __builtin_thread_pointer();
  resident = block;
}

}  // namespace emulator

// Hidden, so that only this library calls it. Variables of other libraries, and all while no kernel runs, are left to
// the C library.
extern "C" __attribute__((visibility("hidden"))) void* __tls_get_addr(size_t* index) {
  using namespace emulator;
  if (resident && index[0] == image.module && kernel_thread_pointer == __builtin_thread_pointer())
    return resident->shared.data + index[1];
  static const auto original = reinterpret_cast<void* (*)(size_t*)>(dlsym(RTLD_DEFAULT, "__tls_get_addr"));
  return original(index);
}
