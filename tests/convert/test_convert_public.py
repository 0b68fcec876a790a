# SPDX-License-Identifier: MIT
"""Channel attention from public code computes the same after ``convert``, without new side effects."""

import copy
import math
import random
import warnings
from typing import Any

import numpy
import pytest
import torch
from public_lookalikes import CASES, C, Case
from public_spellings import SPELLINGS
from torch import Tensor, nn

from eca_cuda import conversion_report, convert, revert
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import channels_last, used_budget

SIZES = {3: ((49,), (1,)), 4: ((7, 9), (1, 1), (8, 8)), 5: ((3, 4, 5), (1, 2, 1))}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
ALL = CASES | SPELLINGS
each = pytest.mark.parametrize("case", ALL.values(), ids=ALL)


def pair(case: Case, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A converted module and a copy that was not converted."""
    torch.manual_seed(0)
    theirs = case.make().to(dtype)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    ours = copy.deepcopy(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(ours)
    return ours, theirs


def make(case: Case, n: int, size: tuple[int, ...], dtype: torch.dtype, kind: str = "") -> Tensor:
    generator = torch.Generator().manual_seed(n)
    ones = (1,) * len(size)
    x = torch.randn((n, C, *size), generator=generator, dtype=torch.float64)
    x = x + torch.randn((n, C, *ones), generator=generator, dtype=torch.float64)
    if kind == "saturating":
        x = x * 40
    elif kind == "huge":
        x = x * (1e4 if dtype == torch.float16 else 1e30)
    elif kind == "not finite":
        x[0, 0], x[-1, C // 2].flatten()[0], x[0, -1] = math.nan, math.inf, -math.inf
    return x.to(dtype).movedim(1, case.channels_dim).contiguous()


def seen(layer: nn.Module, x: Tensor, wants_grad: bool) -> dict[str, Any]:
    """Everything that a caller can see of a call."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(wants_grad)
    given = x * 1 if wants_grad else x  # a forward may write into it
    layer.zero_grad()
    torch.manual_seed(1)
    random.seed(1)
    try:
        returned = layer(given)
    except Exception as error:
        return {"error": type(error)}
    y, *others = returned if isinstance(returned, tuple) else (returned,)
    result: dict[str, Any] = {"y": y, "others": others, "given": given.detach().clone()}
    if y.requires_grad:
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        y.backward(weights.to(y.dtype))
        result |= {"grad x": x.grad} | {f"grad {name}": p.grad for name, p in layer.named_parameters()}
    result["rng"] = torch.get_rng_state()
    result |= {f"buffer {name}": b.clone() for name, b in layer.named_buffers()}
    attributes = [vars(m) for m in layer.modules()]
    result["attributes"] = [sorted(names.keys() - {"_eca_cuda"}) for names in attributes]
    strides = [
        stride for stride, size in zip(y.stride(), y.shape, strict=True) if size > 1
    ]  # strides of size-1 dimensions mean nothing
    return result | {"meta": (type(returned), y.dtype, y.shape, strides, y.requires_grad, y is given, y.is_leaf)}


def check(case: Case, ours: nn.Module, theirs: nn.Module, x: Tensor, wants_grad: bool) -> None:
    a, b = seen(ours, x, wants_grad), seen(theirs, x, wants_grad)
    if "error" in b:  # for example half x with float32 weights: nothing to compare
        return
    assert a.keys() == b.keys()
    assert a.pop("meta") == b.pop("meta")
    assert a.pop("attributes") == b.pop("attributes")
    if case.reason is not None:
        for name, value in b.items():
            torch.testing.assert_close(a[name], value, rtol=0, atol=0, equal_nan=True)
        return
    # There is no wider type than float64, so the error of float32 is used for eager's.
    eager = seen(copy.deepcopy(theirs).float(), x.float(), wants_grad) if x.dtype == torch.float64 else b
    without_casts = (case.exact or case.make)().double()
    without_casts.load_state_dict(theirs.state_dict())
    for mine, p in zip(without_casts.parameters(), theirs.parameters(), strict=True):
        mine.requires_grad_(p.requires_grad)
    exact = seen(without_casts.train(theirs.training), x.double(), wants_grad)
    n, positions = x.shape[0], x.numel() // (x.shape[0] * C)
    parameters = [v for name, v in exact.items() if name.startswith("grad ") and name != "grad x" and v is not None]
    scale = max((float(v.abs().nan_to_num().max()) for v in parameters), default=0.0)
    for name, value in a.items():
        if name == "y" or (name.startswith("grad ") and value is not None):
            of_parameter = name not in ("y", "grad x")
            terms = n * C * positions if of_parameter else C + positions
            used_budget(name, value.detach(), eager[name].detach(), exact[name].detach(), terms, scale * of_parameter)
        elif isinstance(value, Tensor):
            torch.testing.assert_close(value, b[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert value == b[name]


@each
def test_it_is_fused_or_left_alone_for_the_reason_given(case):
    ours, theirs = pair(case)
    details = [finding.detail for finding in conversion_report(ours).attention]
    assert isinstance(ours, FusedAttention) == (case.reason is None), details
    if case.reason is not None:
        assert type(ours) is type(theirs)
        assert any(case.reason in detail for detail in details), details
    assert type(revert(ours)) is type(theirs) and vars(ours).keys() == vars(theirs).keys()


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_caller_sees_no_difference(case, dtype, training, capsys):
    ours, theirs = pair(case, dtype)
    ours.train(training)
    theirs.train(training)
    for n in (1, 3):
        for size in SIZES[case.dims]:
            x = make(case, n, size, dtype)
            for wants_grad in (True, False):
                check(case, ours, theirs, x, wants_grad)
                if case.dims > 3 and case.channels_dim == 1:
                    check(case, ours, theirs, channels_last(x), wants_grad)
    assert capsys.readouterr() == ("", "")


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["saturating", "huge", "not finite"])
def test_values_at_the_edge(case, dtype, kind):
    """No gradients: for non-finite values, the order of a sum decides where NaN appears."""
    ours, theirs = pair(case, dtype)
    for module in (ours, theirs):
        module.requires_grad_(False)
    check(case, ours, theirs, make(case, 3, SIZES[case.dims][0], dtype, kind), False)


@each
def test_frozen_parameters_get_no_gradient(case):
    ours, theirs = pair(case)
    for module in (ours, theirs):
        module.requires_grad_(False)
    check(case, ours, theirs, make(case, 2, SIZES[case.dims][0], torch.float32), True)
    check(case, ours, theirs, make(case, 2, SIZES[case.dims][0], torch.float32), False)


@each
def test_nothing_is_left_behind(case, capsys):
    ours = case.make()
    numpy.random.seed(0)
    state, before = numpy.random.get_state(), (torch.get_rng_state(), random.getstate())
    hooks = [{name: dict(value) for name, value in vars(m).items() if name.endswith("hooks")} for m in ours.modules()]
    parameters = {name: (p, p._version, p.detach().clone()) for name, p in ours.state_dict(keep_vars=True).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(ours)
    conversion_report(ours)
    revert(ours)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert all(numpy.array_equal(a, b) for a, b in zip(numpy.random.get_state(), state, strict=True))
    assert hooks == [
        {name: dict(value) for name, value in vars(m).items() if name.endswith("hooks")} for m in ours.modules()
    ]
    for name, p in ours.state_dict(keep_vars=True).items():
        original, version, value = parameters[name]
        assert p is original and p._version == version and torch.equal(p.detach(), value)
    assert capsys.readouterr() == ("", "")
