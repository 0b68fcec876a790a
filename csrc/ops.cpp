// SPDX-License-Identifier: MIT
// L3. The pybind11 module eca_cuda._C, which describes the build to Python; loading it defines the operators' schemas
// in torch. The backends register their kernels in their own files: cpu/ops_cpu.cpp, cuda/register_cuda.cpp.
#include <pybind11/pybind11.h>

#include "cpu/kernels.h"
#include "library.h"
#include "plan/python.h"

namespace {

// {variant: ((name, sizes, is optional) of each parameter)}, see gates/gate.h.
pybind11::dict variants() {
  const auto size = [](int n) -> pybind11::object {
    const char* const names[] = {"", "C", "k", "hidden", "C or 1"};
    return n < 0 ? pybind11::object(pybind11::str(names[-n])) : pybind11::object(pybind11::int_(n));
  };
  pybind11::dict all;
  for (const eca::GateInfo& gate : eca::Gates::kInfo) {
    pybind11::list parameters;
    for (int i = 0; i < gate.count; ++i) {
      const eca::Parameter& p = gate.parameters[i];
      pybind11::list sizes;
      for (int d = 0; d < p.dim(); ++d) sizes.append(size(p.sizes[d]));
      parameters.append(pybind11::make_tuple(p.name, pybind11::tuple(sizes), p.optional));
    }
    all[gate.name] = pybind11::tuple(parameters);
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.attr("IS_FIRST_COPY") = eca::is_first_copy();
  for (const eca::NamedOption& option : eca::kNamedOptions) m.attr(option.name) = static_cast<int>(option.value);
  m.attr("VARIANTS") = variants();
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
