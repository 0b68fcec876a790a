# SPDX-License-Identifier: MIT
"""The tail of a residual block (batch norm, ECA, shortcut, ReLU) as a case to measure; ``x`` is the norm's input.

The norm uses batch statistics where gradients are enabled, and running statistics otherwise.
"""

from typing import Any

import torch
from torch import Tensor, nn

from eca_cuda import batch_norm_eca, reference
from eca_cuda.testing import ECA, Variant

from .cases import BLOCK


class Tail(nn.Module):
    """The whole tail in one call of eca_cuda."""

    def __init__(self, c: int, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        attention = ECA.module(c, device=device, dtype=dtype)
        self.weight: Tensor = attention.get_submodule("conv1").get_parameter("weight")
        self.norm = nn.BatchNorm2d(c, device=device, dtype=dtype)

    def forward(self, x: Tensor, residual: Tensor | None = None, activation: Any = None) -> Tensor:
        norm, training = self.norm, torch.is_grad_enabled()
        statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return batch_norm_eca(x, self.weight, *statistics, training=training, residual=residual, activation=activation)


class Apart(nn.Module):
    """The tail with a separate batch norm, and with ``attention`` in between if there is one."""

    def __init__(self, tail: Tail, attention: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.attention = tail.norm, attention

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        u = self.norm.train(torch.is_grad_enabled())(x)
        return torch.relu((u if self.attention is None else self.attention(u)) + residual)


class Fused(Apart):
    """The tail with a separate batch norm, and a module of eca_cuda that adds the shortcut and applies the ReLU."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        assert self.attention is not None
        y: Tensor = self.attention(self.norm.train(torch.is_grad_enabled())(x), residual, "relu")
        return y


def _reference(x: Tensor, weight: Tensor, norm_weight: Tensor, norm_bias: Tensor, **options: Any) -> Tensor:
    statistics = torch.zeros_like(norm_bias), torch.ones_like(norm_bias)
    options |= {"training": torch.is_grad_enabled()}
    return reference.batch_norm_eca(x, weight, norm_weight, norm_bias, *statistics, **options)


VARIANT = Variant(BLOCK, _reference, _reference, Tail, lambda c: {"weight": (1, 1, 5), "norm": (c,), "bias": (c,)})
