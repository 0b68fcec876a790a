# SPDX-License-Identifier: MIT
"""``python -m benchmarks``."""

import sys

if sys.argv[1:2] == ["gpu"]:  # it builds the package that every other command imports
    from .gpu.command import main as gpu

    sys.exit(gpu(sys.argv[2:]))

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
