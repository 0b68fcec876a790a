# SPDX-License-Identifier: MIT
"""The differentiable door to batch norm with ECA behind it."""

from typing import Any, NamedTuple, Optional

from torch import Tensor

from . import checks, ops, reference
from .reference import ChannelConv


class Norm(NamedTuple):
    """What batch norm is given besides ``x``."""

    weight: Optional[Tensor]
    bias: Optional[Tensor]
    running_mean: Optional[Tensor]
    running_var: Optional[Tensor]
    training: bool
    momentum: float
    eps: float


def apply(
    x: Tensor, parameters: tuple[Tensor, Optional[Tensor]], norm: Norm, residual: Optional[Tensor], flags: int
) -> Tensor:
    """``eca(batch_norm(x))`` with the epilogue that ``flags`` asks for."""
    ops.check("eca", x, parameters, residual, flags)
    checks.check_norm(x, *norm[:5])
    return composite(x, parameters, norm, residual, flags)


def composite(
    x: Tensor,
    parameters: tuple[Tensor, Optional[Tensor]],
    norm: Norm,
    residual: Optional[Tensor],
    flags: int,
    conv: ChannelConv = reference.channel_conv,
) -> Tensor:
    """The same in plain torch operators."""
    weight, bias = parameters
    options: dict[str, Any] = ops.options("eca", flags) | {"residual": residual, "bias": bias, "conv": conv}
    options |= {"training": norm.training, "momentum": norm.momentum, "eps": norm.eps}
    return reference.batch_norm_eca(x, weight, *norm[:4], **options)
