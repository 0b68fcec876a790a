# SPDX-License-Identifier: MIT
"""Compares the attention layers of a network with the reference, each on its own input in the network."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from _models import Attention, reference_copy
from rich.progress import track
from torch import Tensor, nn

from eca_cuda.testing import used_budget


@dataclass(frozen=True)
class Layer:
    """The measurements of one attention layer."""

    name: str  # of the residual block it is in
    shape: tuple[int, ...]  # of the feature map, [N, C, H, W]
    kernel_size: int
    gates: Tensor  # [N, C], as the fused layer applied them
    used_budget: float  # error against float64 as a share of what is allowed
    fused_ms: float
    eager_ms: float

    @property
    def speedup(self) -> float:
        return self.eager_ms / self.fused_ms


@torch.no_grad()
def check(name: str, module: nn.Module, x: Tensor, terms: int) -> float:
    """The share of the error budget that ``module`` uses on ``x``; AssertionError when it is above 1."""
    eager, exact = reference_copy(module), reference_copy(module).double()
    return used_budget(name, module(x), eager(x), exact(x.double()), terms)


@torch.no_grad()
def measure_layers(network: nn.Module, x: Tensor, rounds: int) -> list[Layer]:
    """Compare and time every attention layer of ``network`` on its input when the network runs on ``x``."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Attention)}
    maps = _feature_maps(network, x, layers)
    return [_measure(name, layers[name], maps[name], rounds) for name in track(layers, "measuring layers")]


def _feature_maps(network: nn.Module, x: Tensor, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, inputs: maps.update({name: inputs[0]})

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    network(x)
    for hook in hooks:
        hook.remove()
    return maps


def _measure(name: str, attention: Attention, x: Tensor, rounds: int) -> Layer:
    used = check(name, attention, x, terms=x.shape[1] + x[0, 0].numel())
    fused_ms, eager_ms = _median_ms([attention, reference_copy(attention)], x, rounds)
    gates = (attention(x) * x).sum((2, 3)) / x.square().sum((2, 3))
    kernel_size = next(attention.parameters()).shape[-1]
    block = name.rsplit(".", 2)[0]  # of "layer1.0.bn3.1"
    return Layer(block, tuple(x.shape), kernel_size, gates.cpu(), used, fused_ms, eager_ms)


def _median_ms(layers: Sequence[nn.Module], x: Tensor, rounds: int) -> list[float]:
    """Median milliseconds per call. The layers take turns, so that a slow moment of the machine affects all of them."""

    def milliseconds(layer: nn.Module) -> float:
        start = time.perf_counter()
        layer(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)

    times = [[milliseconds(layer) for layer in layers] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]
