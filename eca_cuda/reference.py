# SPDX-License-Identifier: MIT
"""The operations in pure PyTorch: the specification that every kernel is judged against.

Each is pool -> gate -> rescale. ``x`` is ``[N, C, *spatial]`` with one to three spatial dimensions:

    m[n, c] = mean of x[n, c] over the spatial positions
    g[n, :] = Gate(m[n, :]; parameters)
    y       = activation(x * g + residual)

The gate is computed in the wider of the dtypes of ``x`` and of the parameters, ``y`` has the dtype of ``x``.
With ``lengths [N]``, for ``x [N, C, L]`` only, the mean of a sample is that of its first ``lengths[n]`` positions; the
gate applies to all. With ``channels_dim=-1`` the channels come last, ``x [N, *spatial, C]``, and nothing else
differs. ``conv`` is how the convolution across channels is computed, for code that needs another form.
This file imports nothing of ours, runs on every device and is differentiable to any order.
"""

from collections.abc import Callable
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

ChannelConv = Callable[[Tensor, Tensor, Optional[Tensor], str], Tensor]


def channel_conv(m: Tensor, weight: Tensor, bias: Optional[Tensor], padding_mode: str) -> Tensor:
    """The convolution of ``m [N, C]`` across channels."""
    half = weight.shape[-1] // 2
    sequence = m.unsqueeze(1)
    if padding_mode == "circular":
        sequence, half = F.pad(sequence, (half, half), mode="circular"), 0
    return F.conv1d(sequence, weight, bias, padding=half).squeeze(1)


def eca(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    *,
    padding_mode: str = "zeros",
    gate: str = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """ECA (Wang et al., CVPR 2020, section 3.2): ``g = gate(conv1d_k(m))`` across channels; weight ``[1, 1, k]``."""
    g = eca_gate(x, weight, bias, padding_mode, gate, lengths, channels_dim, conv)
    return rescale(x, g, residual, activation, channels_dim)


def eca_gate(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    padding_mode: str,
    gate: str,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """The gate of ``eca``, ``[N, C]``."""
    return squash(conv(pool(x, weight, lengths, channels_dim), weight, bias, padding_mode), gate)


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
    activation: Optional[str] = None,
    padding_mode: str = "zeros",
    gate: str = "sigmoid",
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """Batch norm (Ioffe and Szegedy, 2015) followed by ``eca``."""
    u = F.batch_norm(x, running_mean, running_var, norm_weight, norm_bias, training, momentum, eps)
    return eca(
        u, weight, bias, padding_mode=padding_mode, gate=gate, residual=residual, activation=activation, conv=conv
    )


def multi_kernel_eca(
    x: Tensor,
    weight3: Tensor,
    weight5: Tensor,
    weight7: Tensor,
    mix_weight: Tensor,
    mix_bias: Tensor,
    *,
    cross_channel: bool = False,
    padding_mode: str = "zeros",
    gate: str = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """Three kernels mixed by ``p = softmax(mix_weight m + mix_bias)``, ``mix_weight [3, C]``.

    The original convolves a sequence of length 1, so of its ``[C, 1, k]`` weights only the centre taps ``a`` act:
    ``g = gate(m * (p0 a3 + p1 a5 + p2 a7))``. With ``cross_channel`` the weights are ``[1, 1, k]`` and convolve
    across channels: ``g = gate(p0 conv3(m) + p1 conv5(m) + p2 conv7(m))``.
    """
    m = pool(x, weight3, lengths, channels_dim)
    p = torch.softmax(F.linear(m, mix_weight, mix_bias), dim=1)
    weights = (weight3, weight5, weight7)
    if cross_channel:
        branches = [conv(m, w, None, padding_mode) for w in weights]
    else:
        branches = [m * w[:, 0, w.shape[-1] // 2] for w in weights]
    z = p[:, 0:1] * branches[0] + p[:, 1:2] * branches[1] + p[:, 2:3] * branches[2]
    return rescale(x, squash(z, gate), residual, activation, channels_dim)


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
    padding_mode: str = "zeros",
    gate: str = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """Two convolutions, one of them over the reversed channels, mixed by a small network.

    ``p = softmax(mix_weight relu(hidden_weight m + hidden_bias) + mix_bias)``,
    ``u = p0 gate(conv(m; weight_forward)) + p1 gate(conv(m; flip(weight_backward)))`` and ``g = gate(u)``;
    with ``final_sigmoid=False``, ``g = u``. Weights ``[1, 1, k]``, ``[hidden, C]`` and ``[2, hidden]``.
    """
    m = pool(x, weight_forward, lengths, channels_dim)
    p = torch.softmax(F.linear(F.relu(F.linear(m, hidden_weight, hidden_bias)), mix_weight, mix_bias), dim=1)
    ahead = squash(conv(m, weight_forward, None, padding_mode), gate)
    back = squash(conv(m, weight_backward.flip(-1), None, padding_mode), gate)
    u = p[:, :1] * ahead + p[:, 1:] * back
    return rescale(x, squash(u, gate) if final_sigmoid else u, residual, activation, channels_dim)


def _promoted(a: torch.dtype, b: torch.dtype) -> torch.dtype:
    """``torch.promote_types`` for floating dtypes, which torch.compile can't trace in an exported program."""
    return a if a == b else torch.float64 if torch.float64 in (a, b) else torch.float32


def pool(x: Tensor, weight: Tensor, lengths: Optional[Tensor], channels_dim: int = 1) -> Tensor:
    dtype = _promoted(x.dtype, weight.dtype)
    if lengths is None:
        spatial = range(2, x.dim()) if channels_dim == 1 else range(1, x.dim() - 1)
        return x.mean(dim=tuple(spatial), dtype=dtype)
    if channels_dim != 1:
        x = x.transpose(1, 2)
    counted_from_one = lengths.new_ones(x.shape[2]).cumsum(0)  # a DTensor if lengths is one, unlike torch.arange
    padding = counted_from_one > lengths.unsqueeze(1)
    # In float32 at least, as in mean: a sum of halves soon leaves their range.
    total = x.masked_fill(padding.unsqueeze(1), 0).sum(2, dtype=_promoted(dtype, torch.float32))
    return (total / lengths.unsqueeze(1)).to(dtype)


def squash(z: Tensor, gate: str) -> Tensor:
    # Not F.hardsigmoid, whose float64 gradient multiplies by a float32 1/6 on the CPU (torch 2.14), an error of 1e-8;
    # nor F.relu6, whose gradient of NaN depends on the element's position.
    return (z + 3).clamp(0, 6) / 6 if gate == "hard_sigmoid" else torch.sigmoid(z)


def rescale(
    x: Tensor, g: Tensor, residual: Optional[Tensor], activation: Optional[str], channels_dim: int = 1
) -> Tensor:
    ones = (None,) * (x.dim() - 2)
    y = x * g[(..., *ones) if channels_dim == 1 else (slice(None), *ones)]
    if residual is not None:
        y = y + residual
    if activation == "relu":
        y = F.relu(y)
    return y.to(x.dtype)
