# SPDX-License-Identifier: MIT
"""Sizes beyond any memory are refused with a message, or accepted if there is nothing to compute; never a crash, an
integer overflow or a huge allocation."""

import pytest
import torch
from torch import Tensor

import eca_cuda
from eca_cuda._ext import _C

ELEMENTS = "x: expected at most 2^48 elements, a size of 0 counting as 1, got "


def empty(*shape: int, device: str = "cpu") -> Tensor:
    """A tensor with a size of 0, which needs no memory."""
    return torch.empty(shape, device=device)


def repeated(*shape: int, device: str = "cpu") -> Tensor:
    """One number expanded to ``shape``."""
    return torch.ones((), device=device).expand(shape)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 2**62, 0), (0, 2**62, 1), (2**62, 0, 1), (2**40, 2**20, 0), (1, 0, 2**30, 2**30)], ids=str
)
def test_impossible_maps_are_refused(shape, grad, device):
    weight = torch.ones(1, 1, 3, device=device, requires_grad=grad)
    with pytest.raises(ValueError, check=lambda e: str(e) == ELEMENTS + " x ".join(map(str, shape))):
        eca_cuda.eca(empty(*shape, device=device), weight)
    with pytest.raises(ValueError, match="2\\^48 elements"):
        eca_cuda.eca(repeated(2**30, 2**30, 1, device=device), weight)


def test_impossible_gates_are_refused(device):
    x, numbers = empty(2**40, 0, 1, device=device), "numbers for the gates of all samples"
    with pytest.raises(ValueError, match=rf"x and its parameters: expected at most 2\^48 {numbers}, .*, got {2**40} x"):
        eca_cuda.eca(x, torch.zeros(1, 1, 2**10 + 1, device=device))
    with pytest.raises(ValueError, match=rf"weight: expected a size below 2\^28, got {2**28 + 1}"):
        eca_cuda.eca(x, repeated(1, 1, 2**28 + 1, device=device))
    many, few = (lambda *shape: repeated(*shape, device=device)), torch.ones(1, 1, 3, device=device)
    with pytest.raises(ValueError, match=rf"hidden_weight: expected a size below 2\^28, got {2**28}"):
        eca_cuda.bidirectional_eca(x, few, few, many(2**28, 0), many(2**28), many(2, 2**28), many(2))


def test_empty_calls_are_accepted(device):
    """As many samples as there may be, without channels; and channels without positions, whose means are not wanted."""
    weight = torch.ones(1, 1, 3, device=device, requires_grad=True)
    x = empty(2**40, 0, 1, device=device)
    y = eca_cuda.eca(x, weight, residual=x, activation="relu")
    y.sum().backward()
    assert y.shape == x.shape and torch.equal(weight.grad, torch.zeros_like(weight))
    with torch.no_grad():
        for shape in ((1, 2**46, 0), (2**24, 2**22, 0)):
            assert eca_cuda.eca(empty(*shape, device=device), weight).shape == shape


PLAN = {"n": 2**20, "c": 2**16, "s": 9, "kernel_size": 3, "hidden": 4}


@pytest.mark.parametrize("value", [-1, 2**31, 2**62, 2**70, 1.5, "2", None], ids=str)
@pytest.mark.parametrize("name", PLAN)
def test_a_plan_of_impossible_sizes_names_the_argument(name, value):
    with pytest.raises(ValueError, match=rf"^({name}|n, c, s): expected .*, got "):
        _C.plan(
            **{**PLAN, name: value},
            dtype="float32",
            layout="contiguous",
            variant="bidirectional_eca",
            direction="backward",
            device="h100",
        )
