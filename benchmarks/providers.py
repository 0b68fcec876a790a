# SPDX-License-Identifier: MIT
"""The providers: several ways to do the same work, with the same parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eca_cuda.testing import ECA, Variant

from . import block
from .cases import Job

OURS = ("fused", "function")


@dataclass(frozen=True)
class Function:
    """A layer: the function to call with the maps, and the parameters that training differentiates."""

    call: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()


class EagerECA(nn.Module):
    """ECA as its authors publish it: pooling, 1-D convolution over the channels, sigmoid, product."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = conv
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        m = self.avg_pool(x)
        z = self.conv(m.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        g: Tensor = self.sigmoid(z)
        return g * x


class TimmECA(nn.Module):
    """ECA with the operators of timm's EcaModule."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        z = self.conv(x.mean((2, 3)).view(n, 1, c))
        return x * z.sigmoid().view(n, c, 1, 1).expand_as(x)


class EagerReference(nn.Module):
    """The reference of a variant, with the parameters of ``layer`` in the order of its function."""

    def __init__(self, variant: Variant, layer: nn.Module) -> None:
        super().__init__()
        self.function = variant.reference
        self.weights = nn.ParameterList(layer.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class _WithResidual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.layer(x) + residual)


def make_module(job: Job, variant: Variant, device: str) -> nn.Module:
    """The module under test, in the dtype of ``job``."""
    return variant.module(job.case.c, device=device, dtype=getattr(torch, job.dtype))


def make_layers(job: Job, variant: Variant, module: Any, device: str = "cpu") -> dict[str, Function]:
    """A layer for each of ``job.providers``; all share ``module``'s parameters."""
    parameters = tuple(module.parameters())

    def attention(kind: type[nn.Module]) -> nn.Module:
        """ECA with the weight of the tail."""
        made = ECA.module(job.case.c, device=device, dtype=getattr(torch, job.dtype))
        conv = made.get_submodule("conv1")
        conv.weight = module.weight
        return made if kind is ECA.module else kind(conv)

    def eager(kind: type[nn.Module] = EagerECA) -> nn.Module:
        if isinstance(module, block.Tail):
            return block.Apart(module, attention(kind))
        plain = kind(module.get_submodule("conv1")) if variant is ECA else EagerReference(variant, module)
        return _WithResidual(plain) if job.has_residual else plain

    def compiled(layer: nn.Module, mode: str | None = None) -> Function:
        return Function(torch.compile(layer, dynamic=False, fullgraph=True, mode=mode), parameters)

    def fused() -> Function:
        return Function((lambda x, residual: module(x, residual, "relu")) if job.has_residual else module, parameters)

    makers: dict[str, Callable[[], Function]] = {
        "eager": lambda: Function(eager(), parameters),
        "compile": lambda: compiled(eager()),
        "compile-timm": lambda: compiled(eager(TimmECA)),
        "autotune": lambda: compiled(eager(), "max-autotune-no-cudagraphs"),
        "fused": fused,
        "residual": lambda: Function(block.Fused(module, attention(ECA.module)), parameters),
        "plain": lambda: Function(block.Apart(module, None), tuple(module.norm.parameters())),
        "function": lambda: Function(lambda x: variant.function(x, *parameters), parameters),
        "clone": lambda: Function(lambda x, *residual: x.clone()),
    }
    return {name: makers[name]() for name in job.providers}
