# SPDX-License-Identifier: MIT
"""The gate before the clock: a layer that computes something else is not timed.

Every check raises AssertionError if an error is above the budget of ``eca_cuda.testing``.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from eca_cuda.testing import Variant, check_against_reference, evaluate, make_x, used_budget

from .cases import Job
from .providers import Function

# The check runs in float64 too: of a larger case it takes as many whole samples as fit, at least one.
_CHECKED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Maps:
    """What one call reads: the inputs of the layer (x, and the residual if the phase has one) and grad_y."""

    inputs: tuple[Tensor, ...]
    grad_y: Tensor


def check(job: Job, variant: Variant, layer: nn.Module, device: str = "cpu") -> None:
    """Hold ``layer`` against the reference in the dtype, layout, grad mode and shape of ``job``, with a smaller N."""
    _, c, h, w = job.case.shape
    n = max(1, min(job.case.n, _CHECKED_ELEMENTS // (c * h * w)))
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor, residual: Tensor | None = None, **options: Any) -> Tensor:
        y: Tensor = functional_call(layer, dict(zip(names, parameters, strict=True)), (x, residual), options)
        return y

    def make(seed: int) -> Tensor:
        return in_layout(make_x((n, c, h, w), getattr(torch, job.dtype), seed=seed, device=device), job.layout)

    training, adds = job.differentiates, job.has_residual
    maps = {"residual": make(2) if adds else None, "grad_y": make(1) if training else None}
    options = {"activation": "relu"} if adds else {}
    with torch.set_grad_enabled(training):
        check_against_reference(variant, make(0), list(layer.parameters()), function=function, **maps, **options)


@dataclass(frozen=True)
class Expected:
    """What the reference makes of the first, middle and last sample of a batch, seeing nothing of the others."""

    job: Job
    samples: list[int]
    eager: dict[str, Tensor]
    exact: dict[str, Tensor]

    @classmethod
    def of(cls, job: Job, variant: Variant, parameters: Sequence[Tensor], maps: Maps) -> "Expected":
        n = maps.grad_y.shape[0]
        samples = sorted({0, n // 2, n - 1})
        few = [x[samples] for x in maps.inputs]
        options: dict[str, Any] = {"activation": "relu", "residual": few[1]} if job.has_residual else {}
        options |= {"grad_y": maps.grad_y[samples]} if job.differentiates else {}
        of = functools.partial(evaluate, variant.reference, few[0], parameters, **options)
        return cls(job, samples, of(dtype=None).results, of(dtype=torch.float64).results)

    def check(self, results: Mapping[str, Tensor]) -> None:
        """Hold results of the batch, ``y`` or ``grad_x``, say, against these."""
        terms = self.job.case.c + self.job.case.h * self.job.case.w
        for name, result in results.items():
            ours = result.detach()[self.samples]
            used_budget(f"{name} in its batch", ours, self.eager[name], self.exact[name], terms)


def check_batch(job: Job, variant: Variant, layer: Function, maps: Maps) -> None:
    """Check the very batch that is timed: a launch plan depends on how many samples there are."""
    training = job.differentiates
    leaves = [x.detach().requires_grad_(training) for x in maps.inputs]
    with torch.set_grad_enabled(training):
        y = layer.call(*leaves)
    grads = torch.autograd.grad(y, leaves, maps.grad_y) if training else ()
    names = ("grad_x", "grad_residual")
    Expected.of(job, variant, layer.parameters, maps).check({"y": y, **dict(zip(names, grads, strict=False))})


def in_layout(x: Tensor, layout: str) -> Tensor:
    """``x`` with the memory format that ``layout``, an item of ``cases.LAYOUTS``, names."""
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
