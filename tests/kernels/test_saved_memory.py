# SPDX-License-Identifier: MIT
"""Training keeps x, the parameters, one mean a channel and, for relu, a bit an element: no gate, no map, no copy."""

from collections.abc import Callable, Sequence
from math import prod

import pytest
import torch
from cases import CASES, Case
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda.testing import make_x

SHAPE = (2, 8, 3, 5)


def saved_by(call: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The result of ``call`` and what it saved for backward."""
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        return call(), saved


def new(saved: Sequence[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in ``saved`` that share no memory with ``known``."""
    pointers = {t.untyped_storage().data_ptr() for t in known}
    return [t for t in saved if t.untyped_storage().data_ptr() not in pointers]


def leaves(case: Case, dtype: torch.dtype, memory: str, device: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    x, parameters = case.inputs(SHAPE, dtype, device=device)
    x, residual = LAYOUTS[memory](x), make_x(SHAPE, dtype, seed=2, device=device)
    return x.requires_grad_(), residual.requires_grad_(), [p.requires_grad_() for p in parameters]


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_mean_a_channel_is_kept(case, dtype, wide, memory, device):
    x, residual, parameters = leaves(case, dtype, memory, device)
    _, saved = saved_by(lambda: case.variant.function(x, *parameters, residual=residual, **case.options))
    assert [(t.shape, t.dtype) for t in new(saved, [x, *parameters])] == [(SHAPE[:2], wide)]


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_relu_keeps_a_bit_of_each_element_and_not_its_output(case, memory, device):
    x, residual, parameters = leaves(case, torch.bfloat16, memory, device)
    options = {"residual": residual, "activation": "relu", **case.options}
    _, saved = saved_by(lambda: case.variant.function(x, *parameters, **options))
    kept = {(tuple(t.shape), t.dtype) for t in new(saved, [x, *parameters])}
    n, *sizes = SHAPE
    assert kept == {(SHAPE[:2], torch.float32), ((n, prod(sizes) // 8), torch.uint8)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_kept_without_a_gradient(case, device):
    x, parameters = case.inputs(SHAPE, device=device)
    y, saved = saved_by(lambda: case.variant.function(x, *parameters, **case.options))
    assert not saved and not y.requires_grad
    with torch.no_grad():
        y, saved = saved_by(lambda: case.variant.function(x.requires_grad_(), *parameters, **case.options))
    assert not saved and not y.requires_grad


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_lazy_clone_is_not_copied(case, device):
    """The operators only read what they are given."""
    x, parameters = case.inputs(SHAPE, device=device)
    given = [torch._lazy_clone(t) for t in (x, *parameters, *(make_x(SHAPE, seed=s, device=device) for s in (2, 3)))]
    *arguments, residual, grad_y = (t.requires_grad_() for t in given)
    case.variant.function(*arguments, residual=residual, activation="relu", **case.options).backward(grad_y)
    assert all(t.grad is not None for t in given[:-1])
    assert all(torch._C._is_cow_tensor(t) for t in given)
