// SPDX-License-Identifier: MIT
// The runtime's calls of AddressSanitizer and ThreadSanitizer. It is itself compiled without them, so that they check
// the kernels alone, and finds their hooks when loaded: one object file serves all builds.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>

extern "C" {
#define EMULATOR_WEAK __attribute__((weak, visibility("default")))
EMULATOR_WEAK void __asan_poison_memory_region(const volatile void*, size_t);
EMULATOR_WEAK void __asan_unpoison_memory_region(const volatile void*, size_t);
EMULATOR_WEAK void* __asan_region_is_poisoned(void*, size_t);
EMULATOR_WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
EMULATOR_WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
EMULATOR_WEAK void* __tsan_get_current_fiber();
EMULATOR_WEAK void* __tsan_create_fiber(unsigned);
EMULATOR_WEAK void __tsan_switch_to_fiber(void*, unsigned);
EMULATOR_WEAK void __tsan_acquire(void*);
EMULATOR_WEAK void __tsan_release(void*);
EMULATOR_WEAK void __tsan_read_range(void*, size_t);
EMULATOR_WEAK void __tsan_write_range(void*, size_t);
EMULATOR_WEAK void AnnotateIgnoreReadsBegin(const char*, int);
EMULATOR_WEAK void AnnotateIgnoreReadsEnd(const char*, int);
EMULATOR_WEAK void AnnotateIgnoreWritesBegin(const char*, int);
EMULATOR_WEAK void AnnotateIgnoreWritesEnd(const char*, int);
#undef EMULATOR_WEAK
}

namespace emulator {

inline bool racing() { return __tsan_create_fiber != nullptr; }

inline void poison(const void* p, size_t n) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(p, n);
}
inline void unpoison(const void* p, size_t n) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(p, n);
}
inline bool poisoned(const void* p, size_t n) {
  return __asan_region_is_poisoned && __asan_region_is_poisoned(const_cast<void*>(p), n);
}

// What ThreadSanitizer takes for a thread: a CUDA thread, or the hardware of a block. Parties are expensive (0.6 ms and
// 0.9 MB), so they are reused, the longest unused first: races between two threads of a launch that had the same party
// one after the other are missed. Destroying parties would hide far more races.
class Party {
 public:
  static void provide(size_t count) {
    while (racing() && idle().size() < count) idle().push_back(__tsan_create_fiber(0));
  }
  static void* current() { return __tsan_get_current_fiber ? __tsan_get_current_fiber() : nullptr; }
  static void become(void* handle) {
    if (handle) __tsan_switch_to_fiber(handle, 1 /* no ordering */);
  }

  void take() {
    if (idle().empty()) return;
    handle_ = idle().front();
    idle().pop_front();
  }
  void give_back() {
    if (handle_) idle().push_back(handle_);
    handle_ = nullptr;
  }
  void* handle() const { return handle_; }
  void act(const auto& action) const {
    void* const before = current();
    become(handle_);
    action();
    become(before);
  }

 private:
  static std::deque<void*>& idle() {
    static std::deque<void*> all;
    return all;
  }
  void* handle_ = nullptr;
};

// An acquire happens after all releases before it.
struct Edge {
  void release() {
    if (__tsan_release) __tsan_release(this);
  }
  void acquire() {
    if (__tsan_acquire) __tsan_acquire(this);
  }
  char identity = 0;
};

// The hardware's accesses to memory that kernels see. ThreadSanitizer's own memset and memcpy are no use:
// ignore_noninstrumented_modules, which Python needs, ignores calls from here.
constexpr unsigned char kPoison = 0xff;  // a NaN in every floating-point type
inline void fill(void* p, size_t n) {
  if (__tsan_write_range) __tsan_write_range(p, n);
  std::memset(p, kPoison, n);
}
inline void write(void* destination, const void* value, size_t n) {
  if (__tsan_write_range) __tsan_write_range(destination, n);
  std::memcpy(destination, value, n);
}
inline void copy(void* destination, const void* source, size_t n) {
  if (__tsan_read_range) {
    __tsan_read_range(const_cast<void*>(source), n);
    __tsan_write_range(destination, n);
  }
  std::memcpy(destination, source, n);
}

// While one exists, ThreadSanitizer ignores accesses: those of the C library, called by the runtime, are no kernel's.
struct IgnoreAccesses {
  IgnoreAccesses() {
    if (!AnnotateIgnoreReadsBegin) return;
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~IgnoreAccesses() {
    if (!AnnotateIgnoreReadsEnd) return;
    AnnotateIgnoreReadsEnd("", 0);
    AnnotateIgnoreWritesEnd("", 0);
  }
  IgnoreAccesses(const IgnoreAccesses&) = delete;
};

}  // namespace emulator
