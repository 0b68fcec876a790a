// SPDX-License-Identifier: MIT
// L1. With ECA_CUDA_HUGE_PAGES=1, asks Linux to back a large output by huge pages before its first touch.
//
// A fresh tensor's pages are made one by one as they are first written, 4 KB at a time: that, not the memory, bounds
// every operation whose output glibc takes fresh from the system (above 32 MB). An output is about to be written from
// end to end, so nothing is wasted. It is an option because the first touch of a huge page may be slow where a virtual
// machine's host makes the memory behind it on demand. Measurements: docs/decisions.md.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace eca {

inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  static const bool wanted = [] {
    const char* value = std::getenv("ECA_CUDA_HUGE_PAGES");
    return value && std::strcmp(value, "1") == 0;
  }();
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  // The only error is that the system does not know the advice.
  if (wanted && begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace eca
