# SPDX-License-Identifier: MIT
"""Closure variables, and the code of functions in closures, are watched after ``convert``."""

import copy
from collections.abc import Callable

import pytest
import torch
from disguises import ECA
from torch import Tensor

from eca_cuda import conversion_report, convert
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x


def annealing(inner: bool) -> tuple[Callable, Callable]:
    tau = 1.0

    def gate(z: Tensor) -> Tensor:
        return torch.sigmoid(z / tau)

    def through(z: Tensor) -> Tensor:
        return gate(z)

    def anneal(value: float) -> None:
        nonlocal tau
        tau = value

    return through if inner else gate, anneal


GATES = {inner: annealing(inner) for inner in (False, True)}
of_a_global, of_a_global_inside = GATES[False][0], GATES[True][0]


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("where", ["instance", "class", "global", "cell"])
def test_closure_variables_are_watched(where, inner):
    gate, anneal = GATES[inner] if where == "global" else annealing(inner)
    forwards = {
        "instance": lambda self, x: x * self.own(self.logits(x)),
        "class": lambda self, x: x * self.of_class(self.logits(x)),
        "global": (lambda self, x: x * of_a_global_inside(self.logits(x)))
        if inner
        else (lambda self, x: x * of_a_global(self.logits(x))),
        "cell": lambda self, x: x * gate(self.logits(x)),
    }
    kind = type("Enclosing", (ECA,), {"forward": forwards[where], "of_class": staticmethod(gate)})
    plain, x = kind(), make_x((2, 16, 5, 6))
    if where == "instance":
        plain.own = gate
    m = convert(copy.deepcopy(plain))
    assert isinstance(m, FusedAttention)
    torch.testing.assert_close(m(x), plain(x))
    anneal(5.0)
    try:
        assert torch.equal(m(x), plain(x)) and "tau is 5.0" in conversion_report(m).attention[0].detail
    finally:
        anneal(1.0)


def test_the_code_of_a_function_in_a_cell_is_watched():
    def gate(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    kind = type("Enclosing", (ECA,), {"forward": lambda self, x: x * gate(self.logits(x))})
    m, x = convert(kind()), make_x((2, 16, 5, 6))
    assert isinstance(m, FusedAttention)
    gate.__code__ = (lambda z: 3).__code__
    assert torch.equal(m(x), 3 * x) and "gate was changed" in conversion_report(m).attention[0].detail
