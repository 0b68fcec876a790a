# SPDX-License-Identifier: MIT
"""Squeeze-and-Excitation: the specification, the function and the layer."""

from typing import Any, Optional

import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from .. import autograd, reference
from ..layer import GATES, ChannelAttention, factory
from ..options import Activation, Gate, options
from ..submodules import are_plain
from ..table import Variant, register

torch.fx.wrap("squeeze_excitation")


def specification(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    gate: str = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """``g = gate(expand_weight relu(reduce_weight m + reduce_bias) + expand_bias)``."""
    m = reference.pool(x, reduce_weight, lengths, channels_dim)
    h = F.relu(F.linear(m, reduce_weight.flatten(1), reduce_bias))
    g = reference.squash(F.linear(h, expand_weight.flatten(1), expand_bias), gate)
    return reference.rescale(x, g, residual, activation, channels_dim)


def squeeze_excitation(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    gate: Gate = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """Squeeze-and-Excitation: scale every channel by a gate that a two-layer network computes from all means.

    ``y = activation(x * gate(expand_weight relu(reduce_weight m + reduce_bias) + expand_bias) + residual)``,
    ``m = mean(x)``.

    Args:
        x: ``[N, C, *spatial]``.
        reduce_weight, reduce_bias: ``[hidden, C, 1, 1]`` and ``[hidden]``.
        expand_weight, expand_bias: ``[C, hidden, 1, 1]`` and ``[C]``.
        gate, residual, activation, lengths, channels_dim: as in :func:`eca`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.

    Source: Hu, Shen and Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
    """
    parameters = (reduce_weight, reduce_bias, expand_weight, expand_bias)
    chosen = options("zeros", gate, activation)
    return autograd.apply("squeeze_excitation", x, parameters, residual, chosen, lengths, channels_dim)


class SqueezeExcitation(ChannelAttention):
    """Squeeze-and-Excitation with the parameters of timm's ``SEModule``.

    Args:
        c: number of channels C.
        hidden: width of the network, c // 16 by default, at least 1.
        gate: ``"sigmoid"`` or ``"hard_sigmoid"``.
        channels_dim: as in :class:`EfficientChannelAttention`.

    State dict: ``fc1.weight [hidden, C, 1, 1]``, ``fc1.bias [hidden]``, ``fc2.weight [C, hidden, 1, 1]``,
    ``fc2.bias [C]``.
    """

    def __init__(
        self,
        c: int,
        hidden: Optional[int] = None,
        *,
        gate: Gate = "sigmoid",
        channels_dim: int = 1,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(c, "zeros", gate, channels_dim)
        hidden, made = max(c // 16, 1) if hidden is None else hidden, factory(device, dtype)
        self.fc1, self.act = nn.Conv2d(c, hidden, 1, **made), nn.ReLU()
        self.fc2, self.gate = nn.Conv2d(hidden, c, 1, **made), GATES[gate]()

    def _is_plain(self) -> bool:
        kinds = (nn.Conv2d, nn.ReLU, nn.Conv2d, GATES[self.gate_function])
        return are_plain((self.fc1, self.act, self.fc2, self.gate), kinds)

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        assert fc1.bias is not None and fc2.bias is not None
        given: dict[str, Any] = {"gate": self.gate_function, "residual": residual, "activation": activation}
        return squeeze_excitation(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, lengths=lengths, **given)

    def _gates(self, m: Tensor) -> Tensor:
        g: Tensor = self.gate(self.fc2(self.act(self.fc1(m[..., None, None]))))
        return g.flatten(1)


SQUEEZE_EXCITATION = register(
    Variant("squeeze_excitation", specification, squeeze_excitation, SqueezeExcitation, ("gate",))
)
