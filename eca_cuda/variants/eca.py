# SPDX-License-Identifier: MIT
"""Efficient Channel Attention: the function, its in-place form for inference, and the layer."""

import math
from typing import Any, Optional

import torch.fx
from torch import Tensor, nn

from .. import autograd, checks, ops, reference
from .._compat import constant_while_tracing
from ..layer import GATES, ChannelAttention, channel_conv, factory
from ..options import Activation, Gate, Options, PaddingMode, options
from ..submodules import are_plain, are_plain_convs, refreshed
from ..table import Variant, register

torch.fx.wrap("eca")  # torch.fx.symbolic_trace records calls of it, without tracing into it

_MOST_TAPS = 2**28  # the kernels' bound, csrc/gates/gate.h


def eca(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    *,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """Efficient Channel Attention: scale every channel by a gate computed from its neighbouring channels.

    ``y = activation(x * gate(conv1d(mean(x), weight) + bias) + residual)``

    Args:
        x: ``[N, C, *spatial]``.
        weight: ``[1, 1, k]``, k odd: the convolution across channels, the same for all of them.
        bias: ``[1]`` or None.
        padding_mode: what a tap sees beyond the first and last channel: ``"zeros"``, or ``"circular"`` (k // 2 <= C).
        gate: ``"sigmoid"`` or ``"hard_sigmoid"``.
        residual: added after scaling; same shape and dtype as ``x``.
        activation: None or ``"relu"``, applied last.
        lengths: ``[N]`` integers, for ``x [N, C, L]``: the mean of a sample is that of its first ``lengths[n]``
            positions; the gate applies to all. Plain PyTorch operators, at eager's speed. A length of 0 gives NaN, as
            the mean of nothing does; on the CPU, lengths that are not in [0, L] are refused.
        channels_dim: 1, or -1 for ``x [N, *spatial, C]``, and ``residual`` likewise: computed on a view, so that it
            costs what channels_last does. ``lengths`` are then those of ``x [N, L, C]``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given.

    Source: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020,
    section 3.2.
    """
    chosen = options(padding_mode, gate, activation)
    return autograd.apply("eca", x, (weight, bias), residual, chosen, lengths, channels_dim)


def eca_(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    *,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
    activation: Activation = None,
    channels_dim: int = 1,
) -> Tensor:
    """:func:`eca` for inference that overwrites ``x`` and returns it, so that no second feature map is needed.

    Plain PyTorch operators, which read ``x`` twice: it saves memory, and time only where fresh memory is slow.

    Args:
        x: ``[N, C, *spatial]``, overwritten.
        weight, bias, padding_mode, gate, activation, channels_dim: as in :func:`eca`.

    Raises:
        TypeError, ValueError: as :func:`eca`, and if a gradient is wanted: backward would need the overwritten ``x``.
    """
    chosen = options(padding_mode, gate, activation)
    if channels_dim != 1:
        checks.check_channels_last(channels_dim, x)
        _multiply_by_gates(x.movedim(-1, 1), weight, bias, chosen)
        return x
    return _multiply_by_gates(x, weight, bias, chosen)


def _multiply_by_gates(x: Tensor, weight: Tensor, bias: Optional[Tensor], options: Options) -> Tensor:
    weight, bias = autograd.widened(x, (weight, bias))
    ops.check("eca", x, (weight, bias), None, options)
    if torch.is_grad_enabled():
        for name, t in {"x": x, "weight": weight, "bias": bias}.items():
            if t is not None and t.requires_grad:
                raise ValueError(
                    f"{name}: expected no gradient to be wanted, got requires_grad=True: use torch.no_grad()"
                )
    with autograd.without_autocast(x):
        g = reference.eca_gate(x, weight, bias, options.padding_mode, options.gate).to(x.dtype)
    x.mul_(g.reshape(g.shape + (1,) * (x.dim() - 2)))
    return x.relu_() if options.activation == "relu" else x


def adaptive_kernel_size(channels: int, b: float = 1, gamma: float = 2) -> int:
    """Kernel size for a number of channels: ``t = int(abs((log2(channels) + b) / gamma))``, plus 1 if even.

    Source: Wang et al., CVPR 2020, equation 12 and the authors' listing. By default, fewer than 8 channels give 1.
    The released ECA-ResNet-50 weights do not follow it: take the size from a weight's shape when you load one.
    """
    if checks.number("gamma", gamma) == 0:
        raise ValueError("gamma: expected a number other than 0, got 0")
    t = abs((math.log(checks.channels("channels", channels), 2) + checks.number("b", b)) / gamma)
    if t >= _MOST_TAPS:
        raise ValueError(f"b, gamma: expected a kernel size below 2^28, got b={b} and gamma={gamma}")
    return int(t) if int(t) % 2 else int(t) + 1


class EfficientChannelAttention(ChannelAttention):
    """Efficient Channel Attention (Wang et al., CVPR 2020): ``y = x * sigmoid(conv1d_k(mean(x)))`` across channels.

    Args:
        c: number of channels C.
        b, gamma: constants of the adaptive kernel size, see :func:`adaptive_kernel_size`.
        kernel_size: odd; overrides the adaptive size.
        padding_mode: ``"zeros"``, or ``"circular"`` (channels have no edges; timm's ``CecaModule``).
        gate: ``"sigmoid"`` or ``"hard_sigmoid"``.
        bias: give the convolution a bias.
        channels_dim: 1, or -1 for ``x [N, *spatial, C]``; residuals and ``lengths`` go with it.

    State dict: ``conv1.weight [1, 1, k]`` (and ``conv1.bias [1]``). ``conv.weight``, the name that timm and the
    official code use, is accepted too.
    """

    def __init__(
        self,
        c: int,
        b: float = 1,
        gamma: float = 2,
        *,
        kernel_size: Optional[int] = None,
        padding_mode: PaddingMode = "zeros",
        gate: Gate = "sigmoid",
        bias: bool = False,
        channels_dim: int = 1,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(c, padding_mode, gate, channels_dim)
        k = adaptive_kernel_size(c, b, gamma)
        if kernel_size is not None:
            k = checks.integer("kernel_size", kernel_size)
            if k < 1 or k % 2 == 0:
                raise ValueError(f"kernel_size: expected an odd number of at least 1, got {k}")
        self.conv1 = channel_conv(k, padding_mode, checks.flag("bias", bias), factory(device, dtype))
        self.sigmoid = GATES[gate]()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        conv, gate = m["conv1"], m["sigmoid"]
        return are_plain((conv, gate), (nn.Conv1d, GATES[self.gate_function])) and are_plain_convs(
            (conv,), self.padding_mode, True
        )

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        modules: Any = self._modules
        conv = refreshed(modules["conv1"])
        return eca(
            x,
            conv.weight,
            conv.bias,
            padding_mode=self.padding_mode,
            gate=self.gate_function,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )

    def _gates(self, m: Tensor) -> Tensor:
        g: Tensor = self.sigmoid(self.conv1(m.unsqueeze(1)).squeeze(1))
        return g

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            foreign, own = f"{prefix}conv.{name}", f"{prefix}conv1.{name}"
            if foreign in state_dict and own not in state_dict:
                state_dict[own] = state_dict.pop(foreign)
        super()._load_from_state_dict(state_dict, prefix, *args)


ECA = register(Variant("eca", reference.eca, eca, EfficientChannelAttention, kernel_size=5))
