// SPDX-License-Identifier: MIT
// L3. Launch plans for Python: for reports and tests. No operator calls this.
#pragma once
#include <pybind11/pybind11.h>

namespace eca {

// Adds devices() and plan(...) to the module.
void bind_plan(pybind11::module_& m);

}  // namespace eca
