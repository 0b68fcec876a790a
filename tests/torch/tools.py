# SPDX-License-Identifier: MIT
"""Models for tests of third-party tools, which must work on our layers and converted ones as on the originals."""

import copy

import originals
import pytest
import torch
from torch import Tensor, nn

import eca_cuda
from eca_cuda.testing import VARIANTS, make_x

NAMES = [name for variant in VARIANTS if hasattr(originals, name := variant.module.__name__)]
C = 16  # the fewest channels for which BidirectionalECA has a hidden layer

three = pytest.mark.parametrize("name", NAMES)
ways = pytest.mark.parametrize("way", ["own", "converted"])


def original(name: str) -> nn.Module:
    """The original between two convolutions, with a classifier."""
    attention = getattr(originals, name)(C)
    return nn.Sequential(nn.Conv2d(3, C, 3), attention, nn.Flatten(), nn.Linear(C * 9, 2))


def ours(model: nn.Module, way: str, c: int = C) -> nn.Module:
    """A copy of a model from ``original``, with our layer in it or converted."""
    model = copy.deepcopy(model)
    if way == "converted":
        return eca_cuda.convert(model)
    layer = getattr(eca_cuda, type(model[1]).__name__)(c)
    layer.load_state_dict(model[1].state_dict())
    model[1] = layer.train(model.training)
    return model


def images(n: int = 4) -> Tensor:
    return make_x((n, 3, 5, 5))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: nn.Module, expected: nn.Module, x: Tensor) -> None:
    """Assert equal outputs and gradients, with the same parameters."""
    torch.testing.assert_close(model(x), expected(x))
    torch.testing.assert_close(gradients(model, x), gradients(expected, x))
