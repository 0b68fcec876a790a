# SPDX-License-Identifier: MIT
"""A user's code: tests/build/test_typing.py checks it with mypy and pyright and never runs it."""

from typing import Optional

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import eca_cuda
from eca_cuda import BidirectionalECA, DynamicMultiKernelECA, EfficientChannelAttention, compile_mode, eca, eca_


class Block(nn.Module):
    def __init__(self, channels: int, kernel_size: Optional[int] = None) -> None:
        super().__init__()
        self.attention = EfficientChannelAttention(
            channels, kernel_size=kernel_size, padding_mode="circular", gate="hard_sigmoid", bias=True, device="cpu"
        )
        self.others = nn.ModuleList([DynamicMultiKernelECA(channels, (2, 8), 1), BidirectionalECA(channels, groups=8)])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, residual=x, activation="relu")
        for layer in self.others:
            y = layer(y)
        return y


def functions(x: Tensor, weight: Tensor, lengths: Tensor) -> None:
    assert_type(eca(x, weight), Tensor)
    assert_type(eca(x, weight, None, padding_mode="zeros", gate="sigmoid", residual=x, activation=None), Tensor)
    assert_type(eca(x, weight, lengths=lengths), Tensor)
    assert_type(eca(x, weight, residual=x, channels_dim=-1), Tensor)
    assert_type(eca_(x, weight, channels_dim=-1), Tensor)
    assert_type(eca_cuda.reference.eca(x, weight), Tensor)
    assert_type(EfficientChannelAttention(64).forward(x, x, "relu"), Tensor)
    assert_type(eca_cuda.inductor.enable(), None)
    with compile_mode("inline"), torch.no_grad():
        assert_type(eca_cuda.multi_kernel_eca(x, x, x, x, x, x, cross_channel=True), Tensor)
        assert_type(eca_cuda.bidirectional_eca(x, x, x, x, x, x, x, final_sigmoid=False), Tensor)


def mistakes(x: Tensor, weight: Tensor) -> None:
    """Every line is a mistake: a checker that accepts it complains about its unused ignore comment."""
    eca(x, weight, padding_mode="reflect")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    eca(x, weight, activation="gelu")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    eca(x, weight, kernel_size=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    eca(x, weight, channels_dim="last")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    EfficientChannelAttention(64, gate="tanh")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    compile_mode("fast")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    eca_(x, weight, residual=x)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
