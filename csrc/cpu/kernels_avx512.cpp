// SPDX-License-Identifier: MIT
// L1. x86-64 with AVX-512 F, BW, DQ and VL: server processors since 2017, AMD since Zen 4.
#if defined(__x86_64__)
// All library headers come before the pragma: what they define inline must not be compiled for this instruction set.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../options.h"

#define ECA_TARGET avx512
#define ECA_VECTOR_BYTES 64
#define ECA_F16C
#define ECA_MASKS
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "table.h"

namespace eca {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = table("avx512");
}  // namespace eca
#endif
