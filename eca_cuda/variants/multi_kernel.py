# SPDX-License-Identifier: MIT
"""The dynamic multi-kernel variant: the function and the layer."""

from typing import Any, Optional

import torch.fx
from torch import Tensor, nn

from .. import autograd, checks, reference
from .._compat import constant_while_tracing
from ..layer import GATES, ChannelAttention, channel_conv, factory
from ..options import Activation, Gate, PaddingMode, options
from ..submodules import are_plain, are_plain_convs, refreshed
from ..table import Variant, register

torch.fx.wrap("multi_kernel_eca")


def multi_kernel_eca(
    x: Tensor,
    weight3: Tensor,
    weight5: Tensor,
    weight7: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    *,
    cross_channel: bool = False,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """Channel attention by three kernels that a softmax over the channel means mixes per sample.

    ``y = activation(x * gate(p0 b3 + p1 b5 + p2 b7) + residual)`` with ``p = softmax(mix_weight m + mix_bias)``,
    ``m = mean(x)`` and ``bk = m * (centre tap of weightk)``, or ``bk = conv1d(m, weightk)`` with ``cross_channel``.

    Args:
        x: ``[N, C, *spatial]``.
        weight3, weight5, weight7: ``[C, 1, k]``, or ``[1, 1, k]`` with ``cross_channel``.
        mix_weight, mix_bias: ``[3, C]`` and ``[3]``.
        cross_channel: convolve across channels. Without it only the centre taps act, as in the original module, and
            the other taps get a gradient of exactly zero.
        padding_mode: ``"circular"`` needs ``cross_channel``.
        gate, residual, activation, lengths, channels_dim: as in :func:`eca`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.
    """
    parameters = (weight3, weight5, weight7, mix_weight, mix_bias)
    chosen = options(padding_mode, gate, activation, cross_channel=cross_channel)
    return autograd.apply("multi_kernel_eca", x, parameters, residual, chosen, lengths, channels_dim)


class DynamicMultiKernelECA(ChannelAttention):
    """Three channel kernels of size 3, 5 and 7 mixed per sample by a softmax over a linear map of the means.

    As the original defines it, each kernel convolves a sequence of length 1, so only the centre taps act, channels do
    not interact, the other taps get a gradient of exactly zero, and ``gamma_range`` and ``base_b`` change nothing.
    ``cross_channel=True`` is the evident intent: kernels ``[1, 1, k]`` that convolve across channels.

    Args:
        c: number of channels C.
        gamma_range, base_b: kept for the original's signature, without effect.
        cross_channel: convolve across channels. The state dict then has ``conv3.weight [1, 1, 3]`` and so on.
        padding_mode: ``"zeros"`` or ``"circular"``, the latter with ``cross_channel`` only.
        gate: ``"sigmoid"`` or ``"hard_sigmoid"``.
        channels_dim: as in :class:`EfficientChannelAttention`.

    State dict: ``conv3.weight [C, 1, 3]``, ``conv5.weight``, ``conv7.weight``, ``weight_net.0.weight [3, C]``,
    ``weight_net.0.bias [3]``.
    """

    def __init__(
        self,
        c: int,
        gamma_range: tuple[float, float] = (2, 8),
        base_b: float = 1,
        *,
        cross_channel: bool = False,
        padding_mode: PaddingMode = "zeros",
        gate: Gate = "sigmoid",
        channels_dim: int = 1,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(c, padding_mode, gate, channels_dim)
        c, made = self.channels, factory(device, dtype)
        self.cross_channel = checks.flag("cross_channel", cross_channel)
        if padding_mode == "circular" and not cross_channel:
            raise ValueError("padding_mode: 'circular' needs cross_channel=True, got cross_channel=False")
        if not isinstance(gamma_range, (tuple, list)) or len(gamma_range) != 2:
            raise TypeError(f"gamma_range: expected two numbers, got {gamma_range!r}")
        self.gamma_min, self.gamma_max = gamma_range
        self.base_b = base_b

        def branch(k: int) -> nn.Conv1d:
            if cross_channel:
                return channel_conv(k, padding_mode, False, made)
            return nn.Conv1d(c, c, k, padding=k // 2, groups=c, bias=False, **made)

        self.conv3, self.conv5, self.conv7 = branch(3), branch(5), branch(7)
        self.weight_net = nn.Sequential(nn.Linear(c, 3, **made), nn.Softmax(dim=1))
        self.sigmoid = GATES[gate]()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        convs, network = (m["conv3"], m["conv5"], m["conv7"]), m["weight_net"]
        return (
            are_plain(
                (*convs, m["sigmoid"], network, *network._modules.values()),
                (*(nn.Conv1d,) * 3, GATES[self.gate_function], nn.Sequential, nn.Linear, nn.Softmax),
            )
            and network[1].dim in (1, -1)
            and are_plain_convs(convs, self.padding_mode)
        )

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        modules: Any = self._modules
        mix = refreshed(modules["weight_net"]._modules["0"])
        return multi_kernel_eca(
            x,
            refreshed(modules["conv3"]).weight,
            refreshed(modules["conv5"]).weight,
            refreshed(modules["conv7"]).weight,
            mix.weight,
            mix.bias,
            cross_channel=self.cross_channel,
            padding_mode=self.padding_mode,
            gate=self.gate_function,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )

    def _gates(self, m: Tensor) -> Tensor:
        p = self.weight_net(m)
        channels = 2 if self.cross_channel else 1  # the dimension of the convolutions' input that holds the channels
        sequence = m.unsqueeze(3 - channels)
        branches = [conv(sequence).squeeze(3 - channels) for conv in (self.conv3, self.conv5, self.conv7)]
        g: Tensor = self.sigmoid(p[:, :1] * branches[0] + p[:, 1:2] * branches[1] + p[:, 2:3] * branches[2])
        return g

    def extra_repr(self) -> str:
        return super().extra_repr() + (", cross_channel=True" if self.cross_channel else "")


MULTI_KERNEL = register(
    Variant(
        "multi_kernel_eca",
        reference.multi_kernel_eca,
        multi_kernel_eca,
        DynamicMultiKernelECA,
        ("padding_mode", "gate", "cross_channel"),
    )
)
