// SPDX-License-Identifier: MIT
// Memory mapped from the system.
#pragma once

#include "sanitizers.h"

#include <sys/mman.h>

#include <new>

namespace emulator {

constexpr size_t kPageBytes = 4096;

struct Mapping {
  explicit Mapping(size_t size)
      : bytes((size + kPageBytes - 1) / kPageBytes * kPageBytes),
        data(static_cast<char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    if (data == MAP_FAILED) throw std::bad_alloc();
  }
  ~Mapping() {
    unpoison(data, bytes);
    munmap(data, bytes);
  }
  Mapping(const Mapping&) = delete;
  bool contains(const void* p, size_t n) const { return data <= p && static_cast<const char*>(p) + n <= data + bytes; }
  const size_t bytes;
  char* const data;
};

}  // namespace emulator
