// SPDX-License-Identifier: MIT
// L1. How an output's memory is best written.
//
// With ECA_CUDA_HUGE_PAGES=1, Linux is asked to back large outputs by huge pages. Otherwise the first write to each
// page of 4 KB is a page fault, which, not the memory, bounds every operation whose output glibc takes fresh from the
// system (above 32 MB). It is an option because the first touch of a huge page may be slow in a virtual machine, where
// the host provides the memory on demand.
//
// Non-temporal stores pay off for outputs that are too large for the caches, unless their pages are fresh: at the first
// touch of a page the system zeroes it, which brings it into the caches. Measurements of both: docs/decisions.md.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
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
  // Fails only where the system does not know the advice.
  if (wanted && begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// The size of the last-level cache in bytes; 32 MiB where the system does not say.
inline int64_t last_level_cache() {
  static const int64_t found = [] {
    int64_t kilobytes = 0;
    for (int index = 0; index < 8; ++index) {  // the caches of the first core, the last level last
      char path[64];
      std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
      std::FILE* file = std::fopen(path, "r");
      if (!file) break;
      long long size = 0;
      if (std::fscanf(file, "%lldK", &size) == 1) kilobytes = size;
      std::fclose(file);
    }
    return kilobytes > 0 ? kilobytes << 10 : int64_t{32} << 20;
  }();
  return found;
}

// Whether these bytes are fresh from the system, judged by the pages in the middle and at the end: a large output is
// either all fresh or has been used before.
inline bool has_fresh_pages(const void* data, int64_t bytes) {
#ifdef __linux__
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const int64_t byte : {bytes / 2, bytes - 1}) {
    const uintptr_t address = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(byte)) / page * page;
    unsigned char resident = 1;
    if (mincore(reinterpret_cast<void*>(address), page, &resident) == 0 && !(resident & 1)) return true;
  }
#else
  (void)data;
  (void)bytes;
#endif
  return false;
}

inline bool goes_past_caches(const void* output, int64_t bytes) {
  return bytes >= last_level_cache() / 4 && !has_fresh_pages(output, bytes);
}

}  // namespace eca
