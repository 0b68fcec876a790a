# SPDX-License-Identifier: MIT
"""The microbenchmark suite: ``python -m benchmarks --help``; README.md in this folder explains the method."""
