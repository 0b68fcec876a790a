// SPDX-License-Identifier: MIT
// L2. Launching a kernel, as cudaLaunchKernelEx does it: kernel<<<>>> is a language of its own, which g++ does not
// speak.
#pragma once
#include <cuda_runtime.h>

#include <type_traits>

namespace eca {

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

// Calls f with the vector width of a plan as a constant: the widths of widths_of in plan/plan.cpp.
template <class T, class F>
cudaError_t with_width(int vector, F f) {
  constexpr int kWidest = 16 / sizeof(T), kMiddle = sizeof(T) == 2 ? 4 : 1;
  if (vector == kWidest) return f(std::integral_constant<int, kWidest>{});
  if (vector == kMiddle) return f(std::integral_constant<int, kMiddle>{});
  return f(std::integral_constant<int, 1>{});
}

}  // namespace eca
