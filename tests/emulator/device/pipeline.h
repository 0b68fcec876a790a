// SPDX-License-Identifier: MIT
// The functions of cuda_pipeline_primitives.h. Its include guard keeps out the header itself, which is inline assembly.
#pragma once

#include "interface.h"

#define _CUDA_PIPELINE_PRIMITIVES_H_

inline void __pipeline_memcpy_async(void* __restrict__ shared, const void* __restrict__ global, size_t bytes,
                                    EMULATOR_HERE) {
  emulator::thread_load(shared, global, unsigned(bytes), where);
}
inline void __pipeline_commit() { emulator::thread_load_commit(); }
inline void __pipeline_wait_prior(size_t groups_left, EMULATOR_HERE) {
  emulator::thread_load_wait(unsigned(groups_left), where);
}
