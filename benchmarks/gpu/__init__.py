# SPDX-License-Identifier: MIT
"""``make gpu``: build, prove and measure on a machine with a GPU; docs/gpu.md says how to use it."""
