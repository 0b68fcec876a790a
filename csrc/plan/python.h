// SPDX-License-Identifier: MIT
// L3. Launch plans for Python: reports, tests, and the tuning rules that operators follow.
#pragma once
#include <pybind11/pybind11.h>

namespace eca {

// Adds devices, plan, device and set_tuning to the module.
void bind_plan(pybind11::module_& m);

}  // namespace eca
