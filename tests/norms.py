# SPDX-License-Identifier: MIT
"""Calls of ``batch_norm_eca`` as data, and their check against the reference."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda import batch_norm_eca, reference
from eca_cuda.testing import make_x, used_budget

NAMES = ("x", "residual", "weight", "bias", "norm_weight", "norm_bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Call:
    """One call as data: sizes, dtypes, optional tensors, options."""

    shape: tuple[int, ...] = (3, 8, 5, 7)
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype | None = None
    memory: str = "contiguous"
    training: bool = True
    without: tuple[str, ...] = ("bias",)
    k: int = 3
    offset: float = 0.0
    options: dict[str, Any] = field(default_factory=lambda: {"activation": "relu"})

    def tensors(self) -> dict[str, Tensor]:
        c, narrow = self.shape[1], self.parameter_dtype or self.dtype
        make = torch.Generator().manual_seed(3)

        def numbers(*size: int) -> Tensor:
            return torch.randn(size, generator=make, dtype=torch.float64)

        made = {
            "x": LAYOUTS[self.memory](make_x(self.shape, torch.float64) + self.offset),
            "residual": LAYOUTS[self.memory](make_x(self.shape, torch.float64, seed=2)),
            "weight": numbers(1, 1, self.k),
            "bias": numbers(1),
            "norm_weight": numbers(c),
            "norm_bias": numbers(c),
            "running_mean": numbers(c),
            "running_var": numbers(c).abs() + 0.5,
        }
        maps = ("x", "residual")
        return {k: t.to(self.dtype if k in maps else narrow) for k, t in made.items() if k not in self.without}

    def run(self, function: Any, tensors: dict[str, Tensor], grad_y: Tensor | None) -> dict[str, Tensor]:
        """The output, changed statistics and gradients of ``function``."""
        tensors = {k: t.detach().clone(memory_format=torch.preserve_format) for k, t in tensors.items()}
        leaves = {k: t.requires_grad_() for k, t in tensors.items() if grad_y is not None and "running" not in k}
        x, weight, *of_norm = (tensors.get(k) for k in ("x", "weight", *NAMES[4:]))
        given = {"bias": tensors.get("bias"), "residual": tensors.get("residual"), "training": self.training}
        y = function(x, weight, *of_norm, **given, momentum=0.3, eps=1e-3, **self.options)
        results = {"y": y.detach()} | {k: t for k, t in tensors.items() if "running" in k}
        if grad_y is not None:
            grads = torch.autograd.grad(y, list(leaves.values()), grad_y.to(y.dtype))
            results |= {f"grad_{k}": grad for k, grad in zip(leaves, grads, strict=True)}
        return results


def check(call: Call, device: str, differentiate: bool = True) -> None:
    tensors = {k: t.to(device) for k, t in call.tensors().items()}
    grad_y = make_x(call.shape, call.dtype, seed=5).to(device) if differentiate else None
    wide = call.dtype == torch.float64
    ours = call.run(batch_norm_eca, tensors, grad_y)
    # Contiguous, as torch's sums over rows have errors in float64 that matter here.
    as_exact = {k: t.double().contiguous() for k, t in tensors.items()}
    exact = call.run(reference.batch_norm_eca, as_exact, grad_y)
    as_eager = {k: t.float() for k, t in tensors.items()} if wide else tensors
    eager = call.run(reference.batch_norm_eca, as_eager, grad_y)
    assert ours.keys() == exact.keys()
    for name, result in ours.items():
        assert result.dtype == (tensors["x"].dtype if name == "y" else tensors[name.removeprefix("grad_")].dtype)
        terms = max(prod(call.shape), int(call.offset) ** 2)  # means have a rounding of offset * eps
        # Errors of statistics and their gradients scale with their largest terms, not only with x.
        scale = max(float(t.abs().max()) for k, t in exact.items() if k[:4] == name[:4])
        used_budget(f"{call} {name}", result, eager[name], exact[name], terms, scale)
