// SPDX-License-Identifier: MIT
// L3. The operators' names and schemas in torch, and the pybind11 module eca_cuda._C with what Python needs to know of
// the build. The backends register their kernels in their own files: cpu/ops_cpu.cpp, cuda/register_cuda.cpp.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"
#include "library.h"
#include "plan/python.h"

PYBIND11_MODULE(_C, m) {
  m.attr("IS_FIRST_COPY") = eca::is_first_copy();
  for (const eca::NamedOption& option : eca::kNamedOptions) m.attr(option.name) = static_cast<int>(option.value);
  eca::bind_plan(m);
  m.def(
      "cpu_kernels", [] { return eca::kernels().name; }, "Name of the instruction set that the CPU kernels use here.");
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["version"] = ECA_CUDA_VERSION;
        info["torch"] = ECA_CUDA_TORCH;
        info["compiler"] = __VERSION__;
        info["cuda"] = ECA_CUDA_TOOLKIT;
        info["architectures"] = ECA_CUDA_ARCHITECTURES;
        info["built"] = ECA_CUDA_BUILT;
        return info;
      },
      "What this library was built from: versions of eca_cuda, torch's headers, compiler and CUDA toolkit, and what "
      "for.");
}
