// SPDX-License-Identifier: MIT
// Lets g++ compile unmodified CUDA kernels for execution on the CPU.
//
// Force-included (`g++ -x c++ -include cuda_emulator.h kernel.cu`) ahead of NVIDIA's own headers, which declare the
// types and the host API but leave the device API to nvcc: device/ defines it, under the same names. runtime/ runs the
// threads and replaces libcudart.
#pragma once

#ifdef __CUDACC__
#error "cuda_emulator.h is for host compilers only"
#endif

// Headers with assembly leave their functions to device/.
#define CUDA_EMULATOR

// One thread-local image per thread block: see runtime/shared_memory.cpp.
#define __shared__ thread_local
#define __grid_constant__

#include <cuda_runtime.h>

#undef __launch_bounds__
#define __launch_bounds__(...)

#include "device/arithmetic.h"
#include "device/bulk.h"
#include "device/clusters.h"
#include "device/interface.h"
#include "device/launch.h"
#include "device/memory.h"
#include "device/pipeline.h"
#include "device/ptx.h"
#include "device/warp.h"
