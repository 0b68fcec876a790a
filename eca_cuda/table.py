# SPDX-License-Identifier: MIT
"""The table of variants. Each file of ``variants/`` registers one; calls, tests and benchmarks look it up here."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from . import checks


@dataclass(frozen=True)
class Variant:
    """One operation: its name in C++, its specification, its function, its layer and their options."""

    name: str
    reference: Callable[..., Tensor]
    function: Callable[..., Tensor]
    module: type[torch.nn.Module]
    options: tuple[str, ...] = ("padding_mode", "gate")  # of ``Options``, besides the activation
    kernel_size: int = 3  # of the parameters that tests and benchmarks make

    def make_parameters(
        self,
        c: int,
        dtype: torch.dtype = torch.float32,
        *,
        seed: int = 1,
        device: Any = "cpu",
        k: Optional[int] = None,
        hidden: Optional[int] = None,
        cross_channel: bool = False,
        bias: bool = False,
    ) -> list[Tensor]:
        """Random parameters in the order of the function's arguments; matrices are divided by sqrt(fan-in)."""
        sizes = checks.sizes(c, cross_channel) | {
            "k": self.kernel_size if k is None else k,
            "hidden": c // 16 if hidden is None else hidden,
        }
        generator = torch.Generator().manual_seed(seed)
        made = []
        for parameter in checks.PARAMETERS[self.name]:
            if parameter.optional and not bias:
                continue
            shape = [sizes.get(size, size) for size in parameter.sizes]
            fan_in = math.prod(shape[1:]) if len(shape) in (2, 4) else 1
            value = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(max(1, fan_in))
            made.append(value.to(device=device, dtype=dtype))
        return made


VARIANTS: dict[str, Variant] = {}


def register(variant: Variant) -> Variant:
    """Add a variant; ValueError if the compiled library has no operators of that name."""
    if variant.name not in checks.PARAMETERS:
        known = ", ".join(checks.PARAMETERS)
        raise ValueError(f"{variant.name}: expected one of {known} (csrc/gates/registry.h), or a library built anew")
    VARIANTS[variant.name] = variant
    return variant
