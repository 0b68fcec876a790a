# SPDX-License-Identifier: MIT
"""Who is measured on a GPU: ECA by several hands on one set of parameters, alone and in relu(layer(x) + residual)."""

import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from eca_cuda import EfficientChannelAttention

from ..correctness import has_residual
from ..plan import Job
from ..providers import EagerECA, Function

PROVIDERS: dict[str, str] = {
    "eager": "the layer as its authors publish it, operator by operator",
    "timm": "the layer as timm writes it, operator by operator",
    "compile": "torch.compile of the authors' layer, static shapes",
    "compile-timm": "torch.compile of timm's",
    "autotune": "torch.compile of the authors' with mode max-autotune, without its own CUDA graphs",
    "autotune-timm": "the same of timm's",
    "triton": "a kernel that reduces and one that rescales, written in Triton for comparison",
    "two-phase": "the module of eca_cuda in a process that forbids the one-pass kernels",
    "fused": "the module of eca_cuda",
    "clone": "x.clone(): the limit",
}

OURS = ("two-phase", "fused")


class TimmECA(nn.Module):
    """ECA in the operators that timm's EcaModule uses."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        z = self.conv(x.mean((2, 3)).view(n, 1, c))
        return x * z.sigmoid().view(n, c, 1, 1).expand_as(x)


class _WithResidual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.relu(self.layer(x) + residual)


def make_module(job: Job, device: str) -> EfficientChannelAttention:
    """The module under test, in the dtype of ``job``."""
    return EfficientChannelAttention(job.case.c, device=device, dtype=getattr(torch, job.dtype))


def make_layers(job: Job, module: EfficientChannelAttention, names: Sequence[str]) -> dict[str, Function]:
    """A layer for every name that can do the job; all share the parameters of ``module``."""
    adds = has_residual(job.phase)
    parameters = tuple(module.parameters())
    conv = module.get_submodule("conv1")
    authors, timm = EagerECA(conv), TimmECA(conv)

    def plain(layer: nn.Module) -> Callable[..., Tensor]:
        return _WithResidual(layer) if adds else layer

    def compiled(layer: nn.Module, mode: str | None = None) -> Callable[..., Tensor]:
        call: Callable[..., Tensor] = torch.compile(plain(layer), dynamic=False, mode=mode)
        return call

    def fused() -> Callable[..., Tensor]:
        return (lambda x, residual: module(x, residual, "relu")) if adds else module

    def triton() -> Callable[..., Tensor]:
        from .triton_two_kernels import eca  # Triton is not everywhere, and takes a second to import

        return lambda x: eca(x, parameters[0])

    autotune = "max-autotune-no-cudagraphs"
    makers: dict[str, Callable[[], Callable[..., Tensor]]] = {
        "eager": lambda: plain(authors),
        "timm": lambda: plain(timm),
        "compile": lambda: compiled(authors),
        "compile-timm": lambda: compiled(timm),
        "autotune": lambda: compiled(authors, autotune),
        "autotune-timm": lambda: compiled(timm, autotune),
        "triton": triton,
        "two-phase": fused,
        "fused": fused,
    }
    no_triton = adds or device_of(module) == "cpu" or not importlib.util.find_spec("triton")
    chosen = [name for name in names if name != "clone" and not (name == "triton" and no_triton)]
    layers = {name: Function(makers[name](), parameters) for name in chosen}
    if "clone" in names:
        layers["clone"] = Function(lambda x, *residual: x.clone())
    return layers


def device_of(module: nn.Module) -> str:
    """The kind of device that holds the parameters."""
    return next(module.parameters()).device.type
