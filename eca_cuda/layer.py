# SPDX-License-Identifier: MIT
"""The base of the layers, which have the originals' submodules and state-dict keys and run as one kernel.

The kernel does the work of the submodules (``conv1``, ``weight_net`` and so on) with their parameters, even if
``torch.nn.utils`` recomputes these: pruning, parametrizations, weight and spectral norm. If a submodule was replaced
(by adapters or quantisation), or given hooks or a ``forward`` of its own, the layer calls all submodules, in plain
PyTorch at eager's speed. torch overlooks hooks that are added after ``torch.compile``.
"""

from typing import Any, NoReturn, Optional

import torch
from torch import Tensor, nn

from . import checks, submodules
from .options import Activation, Gate, PaddingMode

GATES: dict[Gate, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}


class ChannelAttention(nn.Module):
    """The base of all layers: the options, and the choice between one kernel and calls of the submodules."""

    def __init__(self, c: int, padding_mode: PaddingMode, gate: Gate, channels_dim: int = 1) -> None:
        super().__init__()
        checks.check_options(padding_mode, gate, None)
        checks.check_channels_dim(channels_dim)
        self.channels = checks.channels("c", c)
        self.padding_mode: PaddingMode = padding_mode
        self.gate_function: Gate = gate
        self.channels_dim = channels_dim

    def forward(
        self,
        x: Tensor,
        residual: Optional[Tensor] = None,
        activation: Activation = None,
        lengths: Optional[Tensor] = None,
    ) -> Tensor:
        if self.channels_dim != 1:
            x, residual = submodules.channels_second(x), submodules.channels_second(residual)
        if self._is_plain():
            y = self._fused(x, residual, activation, lengths)
        else:
            m = submodules.pool(x, residual, lengths, next(filter(torch.is_floating_point, self.parameters()), None))
            y = submodules.rescale(x, self._gates(m), residual, activation)
        return y if self.channels_dim == 1 else y.movedim(1, -1)

    def _is_plain(self) -> bool:
        """Whether calls of the submodules would compute what ``_fused`` does."""
        raise NotImplementedError

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        """The layer as one function."""
        raise NotImplementedError

    def _gates(self, m: Tensor) -> Tensor:
        """The gate ``[N, C]`` from the means ``[N, C]``, by calls of the submodules."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        options = {
            "padding_mode": (self.padding_mode, "zeros"),
            "gate": (self.gate_function, "sigmoid"),
            "channels_dim": (self.channels_dim, 1),
        }
        shown = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
        return ", ".join([str(self.channels), *shown])

    def __prepare_scriptable__(self) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(
            f"torch.jit.script: expected a module that TorchScript can read, got {kind}: use torch.export, or "
            "torch.jit.trace, which records plain operators"
        )


def factory(device: Any, dtype: Optional[torch.dtype]) -> dict[str, Any]:
    if dtype is not None and dtype not in checks.DTYPES:
        raise TypeError(f"dtype: expected float32, float64, float16, bfloat16 or None, got {dtype!r}")
    return {"device": device, "dtype": dtype}


def channel_conv(kernel_size: int, padding_mode: PaddingMode, bias: bool, factory: dict[str, Any]) -> nn.Conv1d:
    return nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, padding_mode=padding_mode, bias=bias, **factory)
