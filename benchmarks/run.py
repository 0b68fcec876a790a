# SPDX-License-Identifier: MIT
"""Runs jobs: makes the layers of each, checks those of eca_cuda, and times all in interleaved rounds."""

import contextlib
import functools
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch._functorch.config
from torch import Tensor

from eca_cuda.testing import VARIANTS

from . import block, correctness
from .cases import BLOCK, Job
from .clock import Cpu
from .correctness import Maps, in_layout
from .providers import OURS, Function, make_layers, make_module
from .results import Check, Results, Row, make_row
from .terminal import progress
from .timing import Call

# A repeated backward pass must not reuse the memory of its inputs.
REPEATED = torch._functorch.config.patch(donated_buffer=False)
Work = Callable[[Job, Cpu], Sequence[Row | Check]]
BY_NAME = {variant.name: variant for variant in (*VARIANTS, block.VARIANT)}


def run(
    jobs: Sequence[Job], clock: Cpu, results: Results, deadline: float = float("inf"), work: Work | None = None
) -> None:
    """Run ``work`` (by default :func:`run_job`) for every job that ``results`` does not have, until ``deadline``.

    A job that fails, or whose result is wrong, gets a failed check instead of rows, and the next one begins.
    """
    work = work or run_job
    kind = " ".join(dict.fromkeys(job.variant for job in jobs if job.variant not in BY_NAME)) or "layers"
    for job in progress([job for job in jobs if not results.has(job)]):
        if time.monotonic() > deadline:
            results.add(Check(f"{kind} not begun", "out of time", f"from {job} on"))
            return
        with noting(str(job), clock, results):
            results.add(*work(job, clock))
        gc.collect()
    results.settle(f"{kind} not begun")
    if state := clock.state():
        results.add(Check(f"clocks after {kind}", "done", state))


@contextlib.contextmanager
def noting(name: str, clock: Cpu, results: Results) -> Iterator[None]:
    """Add a failed check for an exception in the body. Raises only if the device can no longer be used."""
    try:
        with clock.working():
            yield
    except AssertionError as error:
        results.add(Check(name, "failed", f"the result is wrong, so nothing is timed: {error}"))
    except Exception as error:
        results.add(Check(name, "failed", f"{type(error).__name__}: {error}"))
        print(traceback.format_exc(limit=-3), file=sys.stderr)
        clock.check()


def run_job(job: Job, clock: Cpu) -> list[Row | Check]:
    """The rows of one job, and a check for each provider that refused it. A refusal of eca_cuda is an error."""
    torch.compiler.reset()  # so that no case reaches the recompilation limit
    torch.manual_seed(0)
    variant = BY_NAME[job.variant]
    module = make_module(job, variant, clock.device)
    layers = make_layers(job, variant, module, clock.device)
    sets = make_sets(job, clock)
    if ours := layers.keys() & OURS:
        correctness.check(job, variant, module, clock.device)
        if job.variant != BLOCK:  # its batch statistics make samples depend on each other
            correctness.check_batch(job, variant, layers[min(ours)], sets[0])
    calls: dict[str, list[Call]] = {}
    captured: dict[str, Call] = {}
    refused: list[Row | Check] = []
    with REPEATED, torch.set_grad_enabled(job.differentiates):
        for name, layer in layers.items():
            try:
                of_sets = [make_call(job, layer, maps) for maps in sets]
                of_sets[0]()
                captured[name], calls[name] = clock.capture(of_sets), of_sets
            except Exception as error:
                if name in OURS:
                    raise
                refused.append(Check(f"{job}: {name}", "refused", f"{type(error).__name__}: {error}".splitlines()[0]))
        timings = clock.time(captured, len(sets))
        rows = [make_row(job, name, timings[name], **clock.around(of)) for name, of in calls.items()]
    return [*rows, *refused]


def make_sets(job: Job, clock: Cpu, most: int = 1 << 20) -> list[Maps]:
    """Sets of maps to rotate over: equal values in separate memory."""

    def make() -> Tensor:
        return in_layout(torch.randn(job.case.shape, dtype=getattr(torch, job.dtype), device=clock.device), job.layout)

    first = Maps(tuple(make() for _ in range(1 + job.has_residual)), make())
    count = min(most, clock.sets(first.grad_y.nbytes))
    copies = (Maps(tuple(t.clone() for t in first.inputs), first.grad_y.clone()) for _ in range(count - 1))
    return [first, *copies]


def make_call(job: Job, layer: Function, maps: Maps) -> Call:
    """The timed call: forward; the gradients of all inputs and parameters; or, in training, both."""
    if not job.differentiates or not layer.parameters:
        return functools.partial(layer.call, *maps.inputs)
    leaves = [x.detach().requires_grad_() for x in maps.inputs]
    wanted = [*leaves, *layer.parameters]
    if job.phase.endswith("backward"):
        y = layer.call(*leaves)
        return lambda: torch.autograd.grad(y, wanted, maps.grad_y, retain_graph=True)
    return lambda: torch.autograd.grad(layer.call(*leaves), wanted, maps.grad_y)


def warm(jobs: Iterable[Job], clock: Cpu) -> None:
    """Call each provider once to fill Inductor's cache on disk, which all processes share.

    Without max-autotune: it measures, so it must run alone.
    """
    for job in jobs:
        job = replace(job, providers=tuple(name for name in job.providers if name != "autotune"))
        variant = BY_NAME[job.variant]
        with noting(str(job), clock, Results({})), REPEATED, torch.set_grad_enabled(job.differentiates):
            maps = make_sets(job, clock, most=1)[0]
            for layer in make_layers(job, variant, make_module(job, variant, clock.device), clock.device).values():
                make_call(job, layer, maps)()
        torch.compiler.reset()
