# SPDX-License-Identifier: MIT
"""Who is measured: several ways to do the same work, on the same parameters where that makes sense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eca_cuda import compile_mode
from eca_cuda.compiling import Mode
from eca_cuda.testing import ECA, Variant

PROVIDERS: dict[str, str] = {
    "eager": "what a user writes by hand, run by PyTorch operator by operator",
    "compile": "torch.compile of that same module, static shapes",
    "fused": "the module of eca_cuda",
    "function": "the function of eca_cuda, called without a module",
    "se": "a Squeeze-and-Excitation block with reduction 16, for scale",
    "clone": "x.clone(), a copy of the same size into a fresh tensor: the yardstick",
    "block-eager": "torch.compile of batch norm, eager, + x and relu: the layer among what stands around it",
    "block-fused": "the same with the module of eca_cuda, in its compile mode fused",
    "block-inline": "the same with the module of eca_cuda, in its compile mode inline",
}


@dataclass(frozen=True)
class Function:
    """A layer without a module around it: what to call, and the parameters that training differentiates."""

    call: Callable[..., Tensor]
    parameters: tuple[Tensor, ...] = ()


Layer = nn.Module | Function


class EagerECA(nn.Module):
    """ECA as its authors publish it: pool, 1-D convolution over the channels, sigmoid, multiply."""

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


class EagerReference(nn.Module):
    """The reference composite of a variant, holding the parameters of ``layer`` in the order of its function."""

    def __init__(self, variant: Variant, layer: nn.Module) -> None:
        super().__init__()
        self.function = variant.reference
        self.weights = nn.ParameterList(layer.parameters())

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


class SqueezeExcitation(nn.Module):
    """Squeeze-and-Excitation (Hu et al., CVPR 2018) with 1x1 convolutions for its two linear layers."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        g: Tensor = self.gate(x)
        return g * x


class Block(nn.Module):
    """A layer and what stands around it in a ResNet."""

    def __init__(self, channels: int, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, dtype=dtype)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled()
        n = self.norm
        normed = nn.functional.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, training)
        return torch.relu(self.layer(normed) + x)


def _block(channels: int, layer: nn.Module, dtype: torch.dtype, mode: Mode = "fused") -> Function:
    block = Block(channels, layer, dtype)
    compiled = torch.compile(block, dynamic=False)

    def call(x: Tensor) -> Tensor:
        with compile_mode(mode):
            y: Tensor = compiled(x)
        return y

    return Function(call, tuple(block.parameters()))


def _function(variant: Variant, parameters: tuple[Tensor, ...]) -> Function:
    function = variant.function
    return Function(lambda x: function(x, *parameters), parameters)


def make_layers(variant: Variant, channels: int, dtype: torch.dtype, providers: Sequence[str]) -> dict[str, Layer]:
    """One layer per name in ``providers``; eager, compile and fused share one set of parameters of ``dtype``."""
    fused = variant.module(channels, dtype=dtype)
    eager = EagerECA(fused.get_submodule("conv1")) if variant is ECA else EagerReference(variant, fused)
    makers: dict[str, Callable[[], Layer]] = {
        "eager": lambda: eager,
        "compile": lambda: torch.compile(eager, dynamic=False),
        "fused": lambda: fused,
        "se": lambda: SqueezeExcitation(channels).to(dtype),
        "function": lambda: _function(variant, tuple(fused.parameters())),
        "clone": lambda: Function(torch.clone),
        "block-eager": lambda: _block(channels, eager, dtype),
        "block-fused": lambda: _block(channels, fused, dtype),
        "block-inline": lambda: _block(channels, fused, dtype, "inline"),
    }
    return {name: makers[name]() for name in providers}
