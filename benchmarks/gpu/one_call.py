# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.one_call CASE PHASE``: a layer's call between the profiler's start and stop, for ncu."""

import argparse
import sys

import torch

from ..cases import TINY, Case
from ..correctness import differentiates
from ..plan import Job
from ..run import make_call, make_sets
from .kernels import jobs
from .machine import Gpu, Machine, Rehearsal
from .providers import make_layers, make_module

PHASES = ("forward", "backward", "training")


def main(case: Case, phase: str, machine: Machine) -> int:
    """One call of ours in float16, after one that nobody looks at."""
    job = Job(case, "eca", phase, "float16", "contiguous", ("fused",))
    layer = make_layers(job, make_module(job, machine.device), job.providers)["fused"]
    with machine.working(), torch.set_grad_enabled(differentiates(phase)):
        call = make_call(layer, phase, make_sets(job, machine.device, count=1)[0])
        call()
        with machine.profiled():
            call()
    return 0


if __name__ == "__main__":
    cases = {case.name: case for case in (TINY, *(job.case for job in jobs()))}
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=cases)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    sys.exit(main(cases[options.case], options.phase, Rehearsal() if options.dry else Gpu()))
