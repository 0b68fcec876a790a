# SPDX-License-Identifier: MIT
"""The forward matches the reference within the error budget, with the dtype, shape and strides of ``x``."""

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, SHAPES
from layouts import LAYOUTS

from eca_cuda.testing import ECA, channels_last, make_x

HALF = (torch.float16, torch.bfloat16)


# Loops depend on shapes and dtypes, not on options, which are tested on one shape below.
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_forward_matches_reference_for_every_shape(case, shape, dtype, memory, device, check):
    x, parameters = case.inputs(shape, dtype, device=device)
    check(case.variant, LAYOUTS[memory](x), parameters)


# 19 channels and rows of 35 are no multiple of any vector length; the circular cases need at least k // 2 channels.
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("adds", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_matches_reference_for_every_option(case, dtype, adds, activation, device, check):
    x, parameters = case.inputs((3, 19, 5, 7), dtype, device=device)
    residual = make_x(x.shape, dtype, seed=2, device=device) if adds else None
    check(case.variant, x, parameters, residual=residual, activation=activation, **case.options)


# Memory is read by the same code for all options, and in one way per element size.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 19, 6), (4, 19, 5, 7), (4, 19, 2, 3, 5)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_forward_matches_reference_for_every_layout(case, shape, layout, dtype, device, check):
    x, parameters = case.inputs(shape, dtype, device=device)
    check(case.variant, LAYOUTS[layout](x), parameters)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_residual_may_have_any_layout(memory, layout, device, check):
    x = LAYOUTS[memory](make_x((4, 19, 5, 7), device=device))
    residual = LAYOUTS[layout](make_x(x.shape, seed=2, device=device))
    check(ECA, x, ECA.make_parameters(19, device=device), residual=residual, activation="relu")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameters_may_be_float32_while_x_is_half(case, dtype, device, check):
    x, parameters = case.inputs((3, 19, 5, 7), dtype, device=device, parameter_dtype=torch.float32)
    residual = make_x(x.shape, dtype, seed=2, device=device)
    check(case.variant, x, parameters, residual=residual, **case.options)
    check(case.variant, channels_last(x), parameters, **case.options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 19, 6), (4, 19, 5, 7), (4, 19, 2, 3, 5)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_output_has_the_strides_of_empty_like(case, shape, layout, device):
    x, parameters = case.inputs(shape, torch.bfloat16, device=device)
    x = LAYOUTS[layout](x)
    y = case.variant.function(x, *parameters)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
    assert y.stride() == torch.empty_like(x).stride()
    assert y.storage_offset() == 0


# Strides of dimensions of size 1 and of empty tensors carry no meaning, but eager keeps them and code compares them.
@pytest.mark.parametrize("shape", [SHAPES["c1"], SHAPES["1x1"], SHAPES["n0"], SHAPES["s0"], (1, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_output_has_the_strides_of_empty_like_where_they_are_ambiguous(shape, memory, device):
    x = LAYOUTS[memory](make_x(shape, device=device))
    y = ECA.function(x, *ECA.make_parameters(shape[1], device=device))
    assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_inputs_are_left_as_they_were(case, device):
    x, parameters = case.inputs((3, 19, 5, 7), device=device)
    inputs = [x, make_x(x.shape, seed=2, device=device), *parameters]
    before = [t.clone() for t in inputs]
    case.variant.function(x, *parameters, residual=inputs[1], activation="relu")
    assert all(map(torch.equal, inputs, before))
    assert all(t._version == 0 for t in inputs)
