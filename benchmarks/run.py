# SPDX-License-Identifier: MIT
"""Carries out a plan: for each job make the layers, check them, time them."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from eca_cuda.testing import VARIANTS

from . import correctness, environment, timing
from .correctness import in_layout
from .plan import Job
from .providers import Function, Layer, make_layers
from .results import Results, Row, make_rows

# Each call of a job takes the next of several sets of tensors. Together they exceed the last-level cache, as the
# activations of a whole network do; tiny maps cannot, for them a few sets avoid that one stays in L1.
_ROTATED_BYTES = 64 << 20
_MOST_SETS = 16

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def run(jobs: Sequence[Job], budget: timing.Budget) -> Results:
    """Measure every job, with a progress bar on the terminal; GateError at the first layer with a wrong result."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    measured_in = environment.collect()
    rows: list[Row] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=str(job))
            rows += run_job(job, budget)
            progress.advance(task)
    return Results(measured_in, rows)


def run_job(job: Job, budget: timing.Budget) -> list[Row]:
    """Check the fused layer on the case of ``job``, then time its providers against each other."""
    torch.compiler.reset()  # each case compiles afresh, so that no case meets the recompilation limit
    torch.manual_seed(0)
    variant, dtype = _BY_NAME[job.variant], getattr(torch, job.dtype)
    layers = make_layers(variant, job.case.c, dtype, job.providers)
    fused = layers.get("fused")
    if isinstance(fused, nn.Module):
        correctness.check(job, variant, fused)

    training = job.phase == "training"
    sets = _tensor_sets(job, dtype)
    calls = {
        name: [_call(layer, x, grad_y if training else None) for x, grad_y in sets] for name, layer in layers.items()
    }
    with torch.set_grad_enabled(training):
        return make_rows(job, dtype.itemsize, timing.measure(calls, budget))


def _tensor_sets(job: Job, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Pairs of x and grad_y; the numbers in them repeat, the memory does not."""
    x, grad_y = (in_layout(torch.randn(job.case.shape, dtype=dtype), job.layout) for _ in range(2))
    count = min(math.ceil(_ROTATED_BYTES / x.nbytes), _MOST_SETS)
    return [(x, grad_y), *((x.clone(), grad_y.clone()) for _ in range(count - 1))]


def _call(layer: Layer, x: Tensor, grad_y: Tensor | None) -> Callable[[], object]:
    """The timed statement: forward, or with ``grad_y`` forward and the gradients of x and of every parameter."""
    call = layer.call if isinstance(layer, Function) else layer
    parameters = layer.parameters if isinstance(layer, Function) else tuple(layer.parameters())
    if grad_y is None or not parameters:
        return functools.partial(call, x)
    leaf = x.detach().requires_grad_()
    inputs = [leaf, *parameters]
    return lambda: torch.autograd.grad(call(leaf), inputs, grad_y)
