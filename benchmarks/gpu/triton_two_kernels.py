# SPDX-License-Identifier: MIT
"""ECA as one writes it in Triton on the first day, for comparison only: a kernel that reduces, and one that rescales.

Each direction reads its maps twice. Tests run it on the CPU, in Triton's interpreter (TRITON_INTERPRET=1).
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements that a program holds


@triton.jit
def _reduce(
    x, other, mean, gate, out, c, s, stride_c, stride_s, BACKWARD: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr
):
    """Forward: means. Backward: dz = g (1 - g) * the sums of x times ``other``, the gradient of y."""
    n = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    total = tl.zeros((BC,), tl.float32)
    for first in range(0, s, BS):
        positions = first + tl.arange(0, BS)
        at = n * c * s + channels[:, None] * stride_c + positions[None, :] * stride_s
        inside = (channels[:, None] < c) & (positions[None, :] < s)
        values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if BACKWARD:
            values *= tl.load(other + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(values, axis=1)
    here = n * c + channels
    if BACKWARD:
        g = tl.load(gate + here, mask=channels < c, other=0.0)
        tl.store(out + here, total * g * (1 - g), mask=channels < c)
    else:
        tl.store(mean + here, total / s, mask=channels < c)


@triton.jit
def _rescale(
    x,
    numbers,
    weight,
    gate,
    y,
    c,
    s,
    stride_c,
    stride_s,
    K: tl.constexpr,
    BACKWARD: tl.constexpr,
    BC: tl.constexpr,
    BS: tl.constexpr,
):
    """Forward: y = x g, with the gates from means. Backward: grad_x = grad_y g + dm / S, with dm from dz."""
    n = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    positions = tl.program_id(2) * BS + tl.arange(0, BS)
    sums = tl.zeros((BC,), tl.float32)
    for tap in tl.static_range(K):
        neighbour = channels + (K // 2 - tap if BACKWARD else tap - K // 2)
        there = (neighbour >= 0) & (neighbour < c)
        sums += tl.load(weight + tap).to(tl.float32) * tl.load(numbers + n * c + neighbour, mask=there, other=0.0)
    here = n * c + channels
    if BACKWARD:
        g = tl.load(gate + here, mask=channels < c, other=0.0)
    else:
        g = tl.sigmoid(sums)
        tl.store(gate + here, g, mask=(channels < c) & (tl.program_id(2) == 0))
    at = n * c * s + channels[:, None] * stride_c + positions[None, :] * stride_s
    inside = (channels[:, None] < c) & (positions[None, :] < s)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * g[:, None]
    if BACKWARD:
        values += (sums / s)[:, None]
    tl.store(y + at, values.to(y.dtype.element_ty), mask=inside)


class _TwoKernels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        launch = _Launch(x)
        mean, gate = (x.new_empty(x.shape[:2], dtype=torch.float32) for _ in range(2))
        y = torch.empty_like(x)
        launch.reduce(x, None, mean, None, None)
        launch.rescale(x, mean, weight, gate, y, backward=False)
        ctx.save_for_backward(x, weight, mean, gate)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, mean, gate = ctx.saved_tensors
        launch, dz, grad_x = _Launch(x), torch.empty_like(mean), torch.empty_like(x)
        launch.reduce(x, grad_y, None, gate, dz)
        launch.rescale(grad_y, dz, weight, gate, grad_x, backward=True)
        half = weight.shape[-1] // 2
        windows = F.pad(mean, (half, half)).unfold(1, weight.shape[-1], 1)
        return grad_x, torch.einsum("nc,nck->k", dz, windows).to(weight.dtype).view_as(weight)


class _Launch:
    """Grid, strides and tiles for maps like ``x``, contiguous or channels_last."""

    def __init__(self, x: Tensor) -> None:
        self.n, self.c, self.s = x.shape[0], x.shape[1], x[0, 0].numel()
        rows = not x.is_contiguous()
        self.strides = (1, self.c) if rows else (self.s, 1)
        inner = min(_TILE, triton.next_power_of_2(self.s))
        self.tile = {"BC": 64, "BS": _TILE // 64} if rows else {"BC": _TILE // inner, "BS": inner}

    def reduce(self, x: Tensor, grad_y: Any, mean: Any, gate: Any, dz: Any) -> None:
        grid = (self.n, triton.cdiv(self.c, self.tile["BC"]))
        given = (x, grad_y, mean, gate, dz, self.c, self.s, *self.strides)
        _reduce[grid](*given, BACKWARD=grad_y is not None, **self.tile)

    def rescale(self, x: Tensor, numbers: Tensor, weight: Tensor, gate: Tensor, y: Tensor, backward: bool) -> None:
        grid = (self.n, triton.cdiv(self.c, self.tile["BC"]), triton.cdiv(self.s, self.tile["BS"]))
        given = (x, numbers, weight, gate, y, self.c, self.s, *self.strides)
        _rescale[grid](*given, K=weight.shape[-1], BACKWARD=backward, **self.tile)


def eca(x: Tensor, weight: Tensor) -> Tensor:
    """ECA with zero padding; ``weight`` is ``[1, 1, k]``, ``x`` contiguous or channels_last."""
    y: Tensor = _TwoKernels.apply(x, weight)
    return y
