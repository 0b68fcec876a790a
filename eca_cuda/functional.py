# SPDX-License-Identifier: MIT
"""The operations as functions of tensors: ``y = activation(x * gate(mean(x)) + residual)``.

In all of them ``x`` is ``[N, C, *spatial]`` with one to three spatial dimensions, in float32, float64, float16 or
bfloat16, contiguous or channels_last without a copy (other strides through one copy). With ``channels_dim=-1`` it is
``[N, *spatial, C]``, as the tokens of transformers are, without a copy either. Parameters have the dtype of ``x``, or
float32 while ``x`` is half. ``y`` has the shape, dtype and memory format of ``x``.

Sums run in float32 (float64 for float64) in an order that depends on shape and layout only: the same input gives the
same bits for any number of threads. Saved for backward: ``x``, the parameters, the means ``[N, C]`` and, with an
activation, a bit for each element of ``y``. Differentiable to any order, in forward mode and under ``torch.func``.
"""

from typing import Literal, Optional

import torch.fx
from torch import Tensor

from . import autograd, checks, norm, ops
from .checks import PARAMETERS, check_options

__all__ = [
    "Activation",
    "Gate",
    "PaddingMode",
    "batch_norm_eca",
    "bidirectional_eca",
    "check_options",
    "eca",
    "eca_",
    "multi_kernel_eca",
]

PaddingMode = Literal["zeros", "circular"]
Gate = Literal["sigmoid", "hard_sigmoid"]
Activation = Optional[Literal["relu"]]

# torch.fx.symbolic_trace, and what builds on it (feature extractors), record these calls and do not look inside.
for _name in (*PARAMETERS, "batch_norm_eca"):
    torch.fx.wrap(_name)


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
        TypeError, ValueError: naming the argument, what was expected and what came.

    Source: Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks", CVPR 2020,
    section 3.2.
    """
    flags = _flags(padding_mode, gate, activation)
    if lengths is not None or channels_dim != 1:
        return _apply("eca", x, (weight, bias), residual, flags, lengths, channels_dim)
    return autograd.apply("eca", x, (weight, bias), residual, flags)


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
        TypeError, ValueError: as :func:`eca`, and if a gradient is wanted: backward would need the ``x`` that is gone.
    """
    flags = _flags(padding_mode, gate, activation)
    if channels_dim != 1:
        checks.check_channels_last(channels_dim, x)
        autograd.eca_in_place(x.movedim(-1, 1), weight, bias, flags)
        return x
    return autograd.eca_in_place(x, weight, bias, flags)


def batch_norm_eca(
    x: Tensor,
    weight: Tensor,
    norm_weight: Optional[Tensor],
    norm_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    *,
    bias: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
) -> Tensor:
    """Batch norm and ECA behind it, in the passes that batch norm alone needs.

    ``y = eca(batch_norm(x), weight, bias, residual=residual, activation=activation)``, ``batch_norm`` being
    ``(x - mean) / sqrt(var + eps) * norm_weight + norm_bias`` with the mean and the variance of each channel: those of
    the batch (``training``), or the running ones.

    Args:
        x: ``[N, C, *spatial]``.
        weight, bias, residual, activation, padding_mode, gate: as in :func:`eca`.
        norm_weight, norm_bias: ``[C]`` or None, in the dtype of ``x``, or float32 while ``x`` is half.
        running_mean, running_var: ``[C]`` likewise; with ``training`` updated in place, or both None.
        training: whether the statistics are those of ``x``.
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance; not negative, and with ``training`` not 0.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; with ``training``, also if ``x``
            has one value per channel.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1, and that of :func:`eca`.
    """
    flags = _flags(padding_mode, gate, activation)
    checks.number("momentum", momentum)
    checks.flag("training", training)
    checks.epsilon(eps, training)
    statistics = norm.Norm(norm_weight, norm_bias, running_mean, running_var, training, momentum, eps)
    return norm.apply(x, (weight, bias), statistics, residual, flags)


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
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    flags = _flags(padding_mode, gate, activation) + ops.CROSS_CHANNEL * bool(cross_channel)
    parameters = (weight3, weight5, weight7, mix_weight, mix_bias)
    if lengths is not None or channels_dim != 1:
        return _apply("multi_kernel_eca", x, parameters, residual, flags, lengths, channels_dim)
    return autograd.apply("multi_kernel_eca", x, parameters, residual, flags)


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
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    flags = _flags(padding_mode, gate, activation) + ops.SINGLE_SIGMOID * (not final_sigmoid)
    parameters = (weight_forward, weight_backward, hidden_weight, hidden_bias, mix_weight, mix_bias)
    if lengths is not None or channels_dim != 1:
        return _apply("bidirectional_eca", x, parameters, residual, flags, lengths, channels_dim)
    return autograd.apply("bidirectional_eca", x, parameters, residual, flags)


def _apply(
    name: str,
    x: Tensor,
    parameters: tuple[Optional[Tensor], ...],
    residual: Optional[Tensor],
    flags: int,
    lengths: Optional[Tensor],
    channels_dim: int,
) -> Tensor:
    """``autograd.apply`` for every value of the two options that most calls do without."""
    if channels_dim != 1:
        checks.check_channels_last(channels_dim, x, residual, lengths)
        moved = None if residual is None else residual.movedim(-1, 1)
        return _apply(name, x.movedim(-1, 1), parameters, moved, flags, lengths, 1).movedim(1, -1)
    if lengths is None:
        return autograd.apply(name, x, parameters, residual, flags)
    return autograd.apply_to_lengths(name, x, parameters, residual, flags, lengths)


def _flags(padding_mode: PaddingMode, gate: Gate, activation: Activation) -> int:
    try:
        return ops.FLAGS[padding_mode, gate, activation]
    except (KeyError, TypeError):
        check_options(padding_mode, gate, activation)
        raise
