# SPDX-License-Identifier: MIT
"""Checks of a layer before it is timed. They raise AssertionError above the error budget of ``eca_cuda.testing``."""

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

# The reference also runs in float64, so a check takes only as many whole samples as fit, at least one.
_CHECKED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Maps:
    """The tensors of one call: the inputs of the layer (x, and the residual if the phase has one) and grad_y."""

    inputs: tuple[Tensor, ...]
    grad_y: Tensor


def check(job: Job, variant: Variant, layer: nn.Module, device: str = "cpu") -> None:
    """Compare ``layer`` with the reference for the dtype, layout, grad mode and shape of ``job``, with a smaller N."""
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
    """The reference's results for the first, middle and last sample of a batch, computed from those samples alone."""

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
        """Compare results of the whole batch, such as ``y`` or ``grad_x``, with these."""
        terms = self.job.case.c + self.job.case.h * self.job.case.w
        for name, result in results.items():
            ours = result.detach()[self.samples]
            used_budget(f"{name} in its batch", ours, self.eager[name], self.exact[name], terms)


def check_batch(job: Job, variant: Variant, layer: Function, maps: Maps) -> None:
    """Check the batch that is timed: the launch plan depends on the number of samples."""
    training = job.differentiates
    leaves = [x.detach().requires_grad_(training) for x in maps.inputs]
    with torch.set_grad_enabled(training):
        y = layer.call(*leaves)
    grads = torch.autograd.grad(y, leaves, maps.grad_y) if training else ()
    names = ("grad_x", "grad_residual")
    Expected.of(job, variant, layer.parameters, maps).check({"y": y, **dict(zip(names, grads, strict=False))})


def in_layout(x: Tensor, layout: str) -> Tensor:
    """``x`` in the memory format ``layout``, one of ``cases.LAYOUTS``."""
    return x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
