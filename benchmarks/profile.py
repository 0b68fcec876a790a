# SPDX-License-Identifier: MIT
"""Where the time of a call goes: the time of each kernel (torch's profiler), and ncu's metrics of six calls."""

import csv
import functools
import itertools
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from eca_cuda.testing import ECA

from .cases import DRY, LAYOUTS, Job, product, resnet50
from .clock import Cpu
from .providers import make_layers, make_module
from .results import Check, Results, Row, make_row
from .run import make_call, make_sets
from .timing import Call, Timing

VARIANT = "eca kernels"  # the column "variant" of these rows; their providers are kernels

_LARGE = resnet50(256)
NCU_CALLS = [
    Job(_LARGE[case], "eca", phase, "float16", layout, ("fused",))
    for (case, phase), layout in itertools.product(((0, "forward"), (2, "forward"), (2, "backward")), LAYOUTS)
]
_SECTIONS = "SpeedOfLight MemoryWorkloadAnalysis Occupancy LaunchStats SchedulerStats WarpStateStats"
NCU_METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "l1tex__data_bank_conflicts_pipe_lsu.sum")
# The figures of these sections that are kept, by ncu's names.
FIGURES = ("Duration", "DRAM Throughput", "L2 Hit Rate", "Achieved Occupancy", "Eligible Warps Per Scheduler")
FIGURES += ("Warp Cycles Per Issued Instruction", "Registers Per Thread", *NCU_METRICS)


def jobs(dry: bool = False) -> list[Job]:
    """Calls of eca_cuda whose kernels are timed one by one."""
    both = functools.partial(product, variants=[VARIANT], phases=("forward", "backward"), providers=["fused"])
    if dry:
        return both([DRY], dtypes=["float16"])
    return [*both(_LARGE, dtypes=["float16"], layouts=LAYOUTS), *both(_LARGE)]


def kernels(job: Job, clock: Cpu) -> list[Row]:
    """A row for each kernel with its seconds per call; on a CPU a row for each operator."""
    with torch.set_grad_enabled(job.differentiates):
        calls = make_calls(job, clock)
        calls = (calls * 12)[: max(12, len(calls))]
        for call in calls:
            call()
        clock.check()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU][clock.device == "cpu" :]) as recorded:
            for call in calls:
                call()
            clock.check()
    found: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        if clock.device == "cpu" or event.device_type == torch.autograd.DeviceType.CUDA:
            microseconds = max(event.device_time, event.self_cpu_time_total)
            found[kernel_name(event.name)] += microseconds * 1e-6 / len(calls)
    return [make_row(job, name, Timing(s, s, s, len(calls))) for name, s in found.items()]


def kernel_name(mangled: str) -> str:
    """The plain name of a kernel, such as ``"eca_forward_kernel"``, without namespaces and template arguments."""
    words = mangled.replace("(anonymous namespace)::", "").removeprefix("void ").split("<")[0].split("(")[0]
    return words.split("::")[-1].strip() or mangled[:60]


def make_calls(job: Job, clock: Cpu, most: int = 1 << 10) -> list[Call]:
    """Calls of eca_cuda's module, one for each set of maps."""
    layer = make_layers(job, ECA, make_module(job, ECA, clock.device))["fused"]
    return [make_call(job, layer, maps) for maps in make_sets(job, clock, most)]


def call_for_ncu(clock: Cpu, wanted: Sequence[Job] = NCU_CALLS) -> None:
    """Run each call once between the profiler's start and stop, after a warm-up call."""
    for job in wanted:
        with clock.working(), torch.set_grad_enabled(job.differentiates):
            (call,) = make_calls(job, clock, most=1)
            call()
            clock.check()
            watched = clock.device == "cuda"
            torch.cuda.profiler.start() if watched else None
            call()
            clock.check()
            torch.cuda.profiler.stop() if watched else None


def ncu(results: Results) -> None:
    """Run ncu over :data:`NCU_CALLS` and keep its figures as checks. It does not lock the clocks."""
    options = ["--csv", "--clock-control", "none", "--profile-from-start", "off", "--metrics", ",".join(NCU_METRICS)]
    options += [word for section in _SECTIONS.split() for word in ("--section", section)]
    command = ["ncu", *options, sys.executable, "-m", "benchmarks", "gpu", "--inner", "ncu-calls"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    launches = parse(done.stdout)
    print(done.stdout[-1 << 19 :])
    if done.returncode or not launches:
        results.add(Check("ncu", "failed", done.stdout[-500:]))
    calls, call = map(str, NCU_CALLS), ""
    for launch in launches:
        if "gradients" not in launch["kernel"]:  # that kernel is the second one of a call
            call = next(calls, "unexpected call")
        figures = ", ".join(f"{name} {launch[name]}" for name in FIGURES if name in launch)
        results.add(Check(f"ncu {call}: {launch['kernel']}", "done", figures))


def parse(text: str) -> list[dict[str, Any]]:
    """The figures of every launch in the output of ``ncu --csv``; empty without a table.

    The table may have other lines around it: output of the program, and lines of ncu that begin with ``==``.
    """
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(lines[first:]):
        if row.get("Metric Value"):
            launch = found.setdefault(row["ID"], {"kernel": kernel_name(row["Kernel Name"])})
            launch[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())
