// SPDX-License-Identifier: MIT
// L1. What every 64-bit processor has: SSE2 on x86-64, NEON on arm64.
#define ECA_TARGET baseline
#define ECA_VECTOR_BYTES 16
#include "table.h"

namespace eca {
extern const Kernels kernels_baseline;
const Kernels kernels_baseline = table("baseline");
}  // namespace eca
