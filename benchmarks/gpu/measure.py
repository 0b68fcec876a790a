# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.measure STEP``: one measuring step in a process of its own; ``command.py`` starts it."""

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

from .. import environment
from .machine import Gpu, Machine, Rehearsal
from .record import DONE, Line, Record
from .session import Session

# step -> its module, which alone is imported, and the function in it
MEASUREMENTS = {
    "limit": ("limit", "measure"),
    "kernels": ("kernels", "measure"),
    "models": ("networks", "measure"),
    "sweep": ("sweep", "measure"),
    "two-phase": ("kernels", "measure_two_phase"),
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=MEASUREMENTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--resume", type=Path, action="append", default=[])
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    machine: Machine = Rehearsal() if options.dry else Gpu()
    torch.set_float32_matmul_precision("highest")
    record = Record(options.out, options.resume)
    here = environment.collect() | {"gpu": machine.facts(), "dry": machine.dry}
    record.write(Line(options.step, "environment", DONE, found={"environment": [here]}))
    module, function = MEASUREMENTS[options.step]
    measure = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    return int(measure(Session(options.step, record, machine, deadline)))


if __name__ == "__main__":
    sys.exit(main())
