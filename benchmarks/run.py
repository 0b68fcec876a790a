# SPDX-License-Identifier: MIT
"""Carries out a plan: for each job make the layers, check them, time them."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eca_cuda.testing import VARIANTS

from . import correctness, environment, timing
from .correctness import Maps, differentiates, has_residual, in_layout
from .plan import Job
from .providers import Function, Layer, make_layers
from .results import Results, Row, make_rows
from .terminal import progress

# Each call of a job takes the next of several sets of tensors. Together they exceed the last-level cache, as the
# activations of a whole network do; tiny maps cannot, for them a few sets avoid that one stays in L1.
_ROTATED_BYTES = 64 << 20
_MOST_SETS = 16

_BY_NAME = {variant.name: variant for variant in VARIANTS}


def run(jobs: Sequence[Job], budget: timing.Budget) -> Results:
    """Measure every job, with a progress bar on the terminal; GateError at the first layer with a wrong result."""
    measured_in = environment.collect()
    return Results(measured_in, [row for job in progress(jobs) for row in run_job(job, budget)])


def run_job(job: Job, budget: timing.Budget) -> list[Row]:
    """Check the fused layer on the case of ``job``, then time its providers against each other."""
    torch.compiler.reset()  # each case compiles afresh, so that no case meets the recompilation limit
    torch.manual_seed(0)
    variant, dtype = _BY_NAME[job.variant], getattr(torch, job.dtype)
    layers = make_layers(variant, job.case.c, dtype, job.providers)
    fused = layers.get("fused")
    if isinstance(fused, nn.Module):
        correctness.check(job, variant, fused)

    sets = make_sets(job)
    calls = {name: [make_call(layer, job.phase, maps) for maps in sets] for name, layer in layers.items()}
    with torch.set_grad_enabled(differentiates(job.phase)):
        return make_rows(job, dtype.itemsize, timing.measure(calls, budget))


def make_sets(job: Job, device: str = "cpu", count: int | None = None) -> list[Maps]:
    """Sets of maps for calls in turn, as many as a CPU needs or ``count``; the numbers repeat, the memory does not."""

    def make() -> Tensor:
        return in_layout(torch.randn(job.case.shape, dtype=getattr(torch, job.dtype), device=device), job.layout)

    first = Maps(tuple(make() for _ in range(1 + has_residual(job.phase))), make())
    count = count or min(math.ceil(_ROTATED_BYTES / first.grad_y.nbytes), _MOST_SETS)
    copies = (Maps(tuple(t.clone() for t in first.inputs), first.grad_y.clone()) for _ in range(count - 1))
    return [first, *copies]


def make_call(layer: Layer, phase: str, maps: Maps) -> Callable[[], object]:
    """The timed statement: forward; the gradients of all inputs and parameters; or, in training, both."""
    call = layer.call if isinstance(layer, Function) else layer
    parameters = layer.parameters if isinstance(layer, Function) else tuple(layer.parameters())
    if not differentiates(phase) or not parameters:
        return functools.partial(call, *maps.inputs)
    leaves = [x.detach().requires_grad_() for x in maps.inputs]
    wanted = [*leaves, *parameters]
    if phase.endswith("backward"):
        y = call(*leaves)
        return lambda: torch.autograd.grad(y, wanted, maps.grad_y, retain_graph=True)
    return lambda: torch.autograd.grad(call(*leaves), wanted, maps.grad_y)
