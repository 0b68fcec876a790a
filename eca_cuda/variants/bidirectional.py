# SPDX-License-Identifier: MIT
"""The bidirectional variant: the function and the layer."""

from typing import Any, Optional

import torch.fx
from torch import Tensor, nn

from .. import autograd, checks, reference
from .._compat import constant_while_tracing
from ..layer import GATES, ChannelAttention, channel_conv, factory
from ..options import Activation, Gate, PaddingMode, options
from ..submodules import are_plain, are_plain_convs, refreshed
from ..table import Variant, register

torch.fx.wrap("bidirectional_eca")


def bidirectional_eca(
    x: Tensor,
    weight_forward: Tensor,
    weight_backward: Tensor,
    hidden_weight: Tensor,
    hidden_bias: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    *,
    final_sigmoid: bool = True,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """Channel attention by two convolutions, one over the reversed channels, that a small network mixes per sample.

    ``y = activation(x * gate(u) + residual)``, ``u = p0 gate(conv1d(m, wf)) + p1 gate(conv1d(m, flip(wb)))``,
    ``p = softmax(mix_weight relu(hidden_weight m + hidden_bias) + mix_bias)``, ``m = mean(x)``.

    Args:
        x: ``[N, C, *spatial]``.
        weight_forward, weight_backward: ``wf`` and ``wb``, ``[1, 1, k]``, k odd and equal.
        hidden_weight, hidden_bias: ``[hidden, C]`` and ``[hidden]``; hidden may be 0.
        mix_weight, mix_bias: ``[2, hidden]`` and ``[2]``.
        final_sigmoid: False leaves the outer ``gate(u)`` out, so that gates reach (0, 1) instead of (0.5, 0.731).
        padding_mode, gate, residual, activation, lengths, channels_dim: as in :func:`eca`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    parameters = (weight_forward, weight_backward, hidden_weight, hidden_bias, mix_weight, mix_bias)
    chosen = options(padding_mode, gate, activation, final_sigmoid=final_sigmoid)
    return autograd.apply("bidirectional_eca", x, parameters, residual, chosen, lengths, channels_dim)


class BidirectionalECA(ChannelAttention):
    """Two channel convolutions, one over the reversed channels, mixed per sample by a two-layer network.

    The original applies the sigmoid twice, so its gate lies in (0.5, 0.731) and can never switch a channel off;
    ``final_sigmoid=False`` leaves the outer one out. With c < 16 the hidden layer is empty, as in the original.

    Args:
        c: number of channels C.
        groups: kept for the original's signature, without effect.
        final_sigmoid: apply the gate function once more to the mixture, as the original does.
        padding_mode: ``"zeros"`` or ``"circular"``.
        gate: ``"sigmoid"`` or ``"hard_sigmoid"``, wherever the original has a sigmoid.
        channels_dim: as in :class:`EfficientChannelAttention`.

    State dict: ``conv_forward.weight [1, 1, 3]``, ``conv_backward.weight``, ``gate.0.weight [c // 16, c]``,
    ``gate.0.bias``, ``gate.2.weight [2, c // 16]``, ``gate.2.bias``.
    """

    def __init__(
        self,
        c: int,
        groups: int = 8,
        *,
        final_sigmoid: bool = True,
        padding_mode: PaddingMode = "zeros",
        gate: Gate = "sigmoid",
        channels_dim: int = 1,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(c, padding_mode, gate, channels_dim)
        c, made = self.channels, factory(device, dtype)
        self.groups = groups
        self.final_sigmoid = checks.flag("final_sigmoid", final_sigmoid)
        self.conv_forward = channel_conv(3, padding_mode, False, made)
        self.conv_backward = channel_conv(3, padding_mode, False, made)
        hidden = c // 16
        self.gate = nn.Sequential(
            nn.Linear(c, hidden, **made), nn.ReLU(), nn.Linear(hidden, 2, **made), nn.Softmax(dim=1)
        )
        self.sigmoid = GATES[gate]() if final_sigmoid else nn.Identity()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        convs, network = (m["conv_forward"], m["conv_backward"]), m["gate"]
        gate = GATES[self.gate_function] if self.final_sigmoid else nn.Identity
        return (
            are_plain(
                (*convs, m["sigmoid"], network, *network._modules.values()),
                (nn.Conv1d, nn.Conv1d, gate, nn.Sequential, nn.Linear, nn.ReLU, nn.Linear, nn.Softmax),
            )
            and network[3].dim in (1, -1)
            and are_plain_convs(convs, self.padding_mode)
        )

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        modules: Any = self._modules
        gate = modules["gate"]._modules
        hidden, mix = refreshed(gate["0"]), refreshed(gate["2"])
        return bidirectional_eca(
            x,
            refreshed(modules["conv_forward"]).weight,
            refreshed(modules["conv_backward"]).weight,
            hidden.weight,
            hidden.bias,
            mix.weight,
            mix.bias,
            final_sigmoid=self.final_sigmoid,
            padding_mode=self.padding_mode,
            gate=self.gate_function,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )

    def _gates(self, m: Tensor) -> Tensor:
        p, sequence = self.gate(m), m.unsqueeze(1)
        ahead = reference.squash(self.conv_forward(sequence).squeeze(1), self.gate_function)
        back = reference.squash(self.conv_backward(sequence.flip(-1)).flip(-1).squeeze(1), self.gate_function)
        g: Tensor = self.sigmoid(p[:, :1] * ahead + p[:, 1:] * back)
        return g

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.final_sigmoid else ", final_sigmoid=False")


BIDIRECTIONAL = register(
    Variant(
        "bidirectional_eca",
        reference.bidirectional_eca,
        bidirectional_eca,
        BidirectionalECA,
        ("padding_mode", "gate", "final_sigmoid"),
    )
)
