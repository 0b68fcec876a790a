// SPDX-License-Identifier: MIT
// L1. Picks the instruction set, once per process.
#include "kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace eca {

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx512, kernels_avx2;
#endif

namespace {

const Kernels& choose() {
  struct Candidate {
    const Kernels& kernels;
    bool runs;
  };
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {kernels_avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {kernels_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")},
#endif
      {kernels_baseline, true}};
  const char* wanted = std::getenv("ECA_CUDA_CPU");
  if (wanted && !*wanted) wanted = nullptr;
  std::string names;
  for (const Candidate& candidate : candidates) {
    if (!candidate.runs) continue;
    if (!wanted || std::string(wanted) == candidate.kernels.name) return candidate.kernels;
    names += (names.empty() ? "" : ", ") + std::string(candidate.kernels.name);
  }
  throw std::invalid_argument("ECA_CUDA_CPU: expected one of " + names + " on this machine, got " + wanted);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace eca
