// SPDX-License-Identifier: MIT
// The library as Hugging Face's kernel-builder makes it (build.toml): the operators are in a namespace of the build's
// own, TORCH_EXTENSION_NAME, and the Python module uses the limited API, which pybind11 (csrc/ops.cpp) can't. It has
// what eca_cuda/ops.py and eca_cuda/info.py ask of the module, and no launch plans.
#include <Python.h>
#include <torch/headeronly/version.h>
#ifdef USE_CUDA
#include <cuda_runtime_api.h>
#endif

#include "cpu/kernels.h"
#include "library.h"

#define JOINED(a, b) a##b
#define MODULE_INIT(name) JOINED(PyInit_, name)

namespace {

PyObject* cpu_kernels(PyObject*, PyObject*) { return PyUnicode_FromString(eca::kernels().name); }

PyObject* build_info(PyObject*, PyObject*) {
#ifdef USE_CUDA
  const char *built = "CPU and CUDA kernels by kernel-builder", *architectures = ECA_CUDA_ARCHITECTURES;
  PyObject* cuda = PyUnicode_FromFormat("%d.%d", CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
#else
  const char *built = "CPU kernels by kernel-builder", *architectures = "";
  PyObject* cuda = PyUnicode_FromString("");
#endif
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:N}", "built", built, "architectures", architectures, "compiler", __VERSION__,
                       "torch", TORCH_VERSION, "cuda", cuda);
}

PyMethodDef methods[] = {{"cpu_kernels", cpu_kernels, METH_NOARGS, "Name of the instruction set in use."},
                         {"build_info", build_info, METH_NOARGS, "What this library was built from, and what for."},
                         {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, ECA_STRING(TORCH_EXTENSION_NAME), nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC MODULE_INIT(TORCH_EXTENSION_NAME)() {
  PyObject* module = PyModule_Create(&definition);
  const auto add = [&](const char* name, int64_t value) {
    if (module && PyModule_AddIntConstant(module, name, static_cast<long>(value)) < 0) Py_CLEAR(module);
  };
  for (const eca::NamedOption& option : eca::kNamedOptions) add(option.name, option.value);
  add("IS_FIRST_COPY", eca::is_first_copy());
  return module;
}
