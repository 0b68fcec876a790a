// SPDX-License-Identifier: MIT
// L1. x86-64 with AVX2 and F16C: nearly every x86 processor since 2013.
#if defined(__x86_64__)
// All library headers come before the pragma: what they define inline must not be compiled for this instruction set.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../options.h"

#define ECA_TARGET avx2
#define ECA_VECTOR_BYTES 32
#define ECA_F16C
#pragma GCC target("avx2,f16c")
#include "table.h"

namespace eca {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = table("avx2");
}  // namespace eca
#endif
