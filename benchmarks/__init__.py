# SPDX-License-Identifier: MIT
"""The benchmarks of eca_cuda: ``python -m benchmarks``. How they measure: README.md beside this file."""
