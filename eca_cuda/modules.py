# SPDX-License-Identifier: MIT
"""The three layers as ``nn.Module``: the originals' constructors, submodules and state-dict keys, fused execution.

One kernel does the work of the submodules (``conv1``, ``weight_net`` and so on) with their parameters, also where
``torch.nn.utils`` recomputes these: pruning, parametrizations, weight and spectral norm. Where a submodule is not what
the layer made, the layer calls them all, in plain PyTorch at eager's speed: where one was replaced, as by adapters and
quantisation, given hooks, or a ``forward`` of its own. After ``torch.compile``, torch itself overlooks new hooks.
"""

import math
from typing import Any, NoReturn, Optional

import torch
from torch import Tensor, nn

from . import checks, functional, reference, submodules
from ._compat import constant_while_tracing
from .functional import Activation, Gate, PaddingMode
from .submodules import are_plain, are_plain_convs, refreshed

__all__ = ["BidirectionalECA", "DynamicMultiKernelECA", "EfficientChannelAttention", "adaptive_kernel_size"]


def adaptive_kernel_size(channels: int, b: float = 1, gamma: float = 2) -> int:
    """Kernel size for a number of channels: ``t = int(abs((log2(channels) + b) / gamma))``, made odd upwards.

    Source: Wang et al., CVPR 2020, equation 12 and the authors' listing. Four channels or fewer give 1.
    The released ECA-ResNet-50 weights do not follow it: take the size from a weight's shape when you load one.
    """
    if checks.number("gamma", gamma) == 0:
        raise ValueError("gamma: expected a number other than 0, got 0")
    t = abs((math.log(_channels("channels", channels), 2) + checks.number("b", b)) / gamma)
    if t >= _MOST_TAPS:
        raise ValueError(f"b, gamma: expected a kernel size below 2^28, got b={b} and gamma={gamma}")
    return int(t) if int(t) % 2 else int(t) + 1


_MOST_TAPS = 2**28  # the kernels' bound, csrc/gates/gate.h


def _channels(name: str, value: Any) -> int:
    c = checks.integer(name, value)
    if c < 1:
        raise ValueError(f"{name}: expected at least 1 channel, got {c}")
    return c


_GATES: dict[Gate, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "hard_sigmoid": nn.Hardsigmoid}


class _ChannelAttention(nn.Module):
    """What the three layers share: the options, and the choice between one kernel and calls of the submodules."""

    def __init__(self, c: int, padding_mode: PaddingMode, gate: Gate, channels_dim: int = 1) -> None:
        super().__init__()
        functional.check_options(padding_mode, gate, None)
        if channels_dim not in (1, -1):
            raise ValueError(f"channels_dim: expected 1 or -1, got {channels_dim!r}")
        self.channels = _channels("c", c)
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
        """What the submodules, called, make of the means ``[N, C]``."""
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


def _factory(device: Any, dtype: Optional[torch.dtype]) -> dict[str, Any]:
    if dtype is not None and dtype not in checks.DTYPES:
        raise TypeError(f"dtype: expected float32, float64, float16, bfloat16 or None, got {dtype!r}")
    return {"device": device, "dtype": dtype}


def _channel_conv(kernel_size: int, padding_mode: PaddingMode, bias: bool, factory: dict[str, Any]) -> nn.Conv1d:
    return nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, padding_mode=padding_mode, bias=bias, **factory)


class EfficientChannelAttention(_ChannelAttention):
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
        self.conv1 = _channel_conv(k, padding_mode, checks.flag("bias", bias), _factory(device, dtype))
        self.sigmoid = _GATES[gate]()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        conv, gate = m["conv1"], m["sigmoid"]
        return are_plain((conv, gate), (nn.Conv1d, _GATES[self.gate_function])) and are_plain_convs(
            (conv,), self.padding_mode, True
        )

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        modules: Any = self._modules
        conv = refreshed(modules["conv1"])
        return functional.eca(
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


class DynamicMultiKernelECA(_ChannelAttention):
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
        c, factory = self.channels, _factory(device, dtype)
        self.cross_channel = checks.flag("cross_channel", cross_channel)
        if padding_mode == "circular" and not cross_channel:
            raise ValueError("padding_mode: 'circular' needs cross_channel=True, got cross_channel=False")
        if not isinstance(gamma_range, (tuple, list)) or len(gamma_range) != 2:
            raise TypeError(f"gamma_range: expected two numbers, got {gamma_range!r}")
        self.gamma_min, self.gamma_max = gamma_range
        self.base_b = base_b

        def branch(k: int) -> nn.Conv1d:
            if cross_channel:
                return _channel_conv(k, padding_mode, False, factory)
            return nn.Conv1d(c, c, k, padding=k // 2, groups=c, bias=False, **factory)

        self.conv3, self.conv5, self.conv7 = branch(3), branch(5), branch(7)
        self.weight_net = nn.Sequential(nn.Linear(c, 3, **factory), nn.Softmax(dim=1))
        self.sigmoid = _GATES[gate]()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        convs, network = (m["conv3"], m["conv5"], m["conv7"]), m["weight_net"]
        return (
            are_plain(
                (*convs, m["sigmoid"], network, *network._modules.values()),
                (*(nn.Conv1d,) * 3, _GATES[self.gate_function], nn.Sequential, nn.Linear, nn.Softmax),
            )
            and network[1].dim in (1, -1)
            and are_plain_convs(convs, self.padding_mode)
        )

    def _fused(
        self, x: Tensor, residual: Optional[Tensor], activation: Activation, lengths: Optional[Tensor]
    ) -> Tensor:
        modules: Any = self._modules
        mix = refreshed(modules["weight_net"]._modules["0"])
        return functional.multi_kernel_eca(
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
        channels = 2 if self.cross_channel else 1  # the dimension of the convolutions' input that the means run along
        sequence = m.unsqueeze(3 - channels)
        branches = [conv(sequence).squeeze(3 - channels) for conv in (self.conv3, self.conv5, self.conv7)]
        g: Tensor = self.sigmoid(p[:, :1] * branches[0] + p[:, 1:2] * branches[1] + p[:, 2:3] * branches[2])
        return g

    def extra_repr(self) -> str:
        return super().extra_repr() + (", cross_channel=True" if self.cross_channel else "")


class BidirectionalECA(_ChannelAttention):
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
        c, factory = self.channels, _factory(device, dtype)
        self.groups = groups
        self.final_sigmoid = checks.flag("final_sigmoid", final_sigmoid)
        self.conv_forward = _channel_conv(3, padding_mode, False, factory)
        self.conv_backward = _channel_conv(3, padding_mode, False, factory)
        hidden = c // 16
        self.gate = nn.Sequential(
            nn.Linear(c, hidden, **factory), nn.ReLU(), nn.Linear(hidden, 2, **factory), nn.Softmax(dim=1)
        )
        self.sigmoid = _GATES[gate]() if final_sigmoid else nn.Identity()

    @constant_while_tracing  # Dynamo overlooks hooks, and a forward that was replaced on the instance
    def _is_plain(self) -> bool:
        m: Any = self._modules
        convs, network = (m["conv_forward"], m["conv_backward"]), m["gate"]
        gate = _GATES[self.gate_function] if self.final_sigmoid else nn.Identity
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
        return functional.bidirectional_eca(
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
