# SPDX-License-Identifier: MIT
"""Properties of all inputs: the budget for random calls, and laws that need no reference."""

from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, Case
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda.testing import ECA, channels_last, check_against_reference, make_x

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis makes the examples")
st = hypothesis.strategies
# The same examples in every run: to look for new ones, take derandomize away.
sampled = hypothesis.settings(max_examples=80, deadline=None, derandomize=True, database=None)

# Up to past the widest vector (16 numbers) in every dimension, and 8 channels at least where circular needs them.
SHAPES = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(1, 70)),
    st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(1, 18), st.integers(1, 18)),
    st.tuples(st.integers(1, 3), st.integers(8, 20), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)
CASE, LAYOUT, DTYPE = st.sampled_from(CASES), st.sampled_from(list(LAYOUTS)), st.sampled_from(DTYPES)
MEMORY = st.sampled_from(["contiguous", "channels_last"])


@sampled
@hypothesis.given(
    case=CASE,
    shape=SHAPES,
    dtype=DTYPE,
    float32_parameters=st.booleans(),
    layouts=st.tuples(LAYOUT, LAYOUT, st.none() | LAYOUT),
    activation=st.sampled_from([None, "relu"]),
)
def test_any_call_is_within_the_budget(device, case, shape, dtype, float32_parameters, layouts, activation):
    half = dtype in (torch.float16, torch.bfloat16)
    parameter_dtype = torch.float32 if half and float32_parameters else dtype
    x, parameters = case.inputs(shape, dtype, device=device, parameter_dtype=parameter_dtype)
    of_x, of_grad, of_residual = layouts
    options: dict[str, Any] = {"activation": activation, **case.options}
    options["grad_y"] = LAYOUTS[of_grad](make_x(shape, dtype, seed=3, device=device))
    if of_residual is not None:
        options["residual"] = LAYOUTS[of_residual](make_x(shape, dtype, seed=2, device=device))
    check_against_reference(case.variant, LAYOUTS[of_x](x), parameters, **options)


def results(case: Case, x: Tensor, parameters: list[Tensor], grad_y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = case.variant.function(x, *parameters, **case.options, **options)
    return y.detach(), torch.autograd.grad(y, x, grad_y)[0]


def assert_samples_keep_their_bits(
    case: Case, shape: tuple[int, ...], memory: str, order: list[int], device: str
) -> None:
    """In a batch of these samples of another one."""
    layout = LAYOUTS[memory]
    x, parameters = case.inputs(shape, device=device)
    grad_y = make_x(shape, seed=3, device=device)
    y, grad_x = results(case, layout(x), parameters, layout(grad_y))
    y_some, grad_some = results(case, layout(x[order]), parameters, layout(grad_y[order]))
    assert torch.equal(y_some, y[order])
    assert torch.equal(grad_some, grad_x[order])


@sampled
@hypothesis.given(case=CASE, shape=SHAPES, memory=MEMORY, data=st.data())
def test_a_sample_does_not_depend_on_the_others(device, case, shape, memory, data):
    """To the bit: repeated, and at any place among any others; of a batch of another size, see below."""
    of_the_same_size = st.lists(st.integers(0, shape[0] - 1), min_size=shape[0], max_size=shape[0])
    assert_samples_keep_their_bits(case, shape, memory, data.draw(of_the_same_size), device)


@sampled
@hypothesis.given(case=CASE, shape=SHAPES, memory=MEMORY, data=st.data())
def test_a_sample_on_a_cpu_does_not_depend_on_the_batch_size(case, shape, memory, data):
    """On a GPU the plan depends on the batch size (tests/kernels/test_batch_invariance.py)."""
    order = data.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=5))
    assert_samples_keep_their_bits(case, shape, memory, order, "cpu")


@sampled
@hypothesis.given(case=CASE, shape=SHAPES, memory=MEMORY, power=st.integers(-3, 3))
def test_backward_is_linear_in_grad_y(device, case, shape, memory, power):
    """To the bit for powers of two, which scale without rounding."""
    layout = LAYOUTS[memory]
    x, parameters = case.inputs(shape, device=device)
    grad_y = layout(make_x(shape, seed=3, device=device))
    _, grad_x = results(case, layout(x), parameters, grad_y)
    _, scaled = results(case, layout(x), parameters, grad_y * 2.0**power)
    assert torch.equal(scaled, grad_x * 2.0**power)


@sampled
@hypothesis.given(case=st.sampled_from(DEFAULTS), shape=SHAPES, dtype=DTYPE, memory=MEMORY)
def test_the_gate_shrinks_and_keeps_signs(device, case, shape, dtype, memory):
    """It lies in [0, 1], and there are no negative zeros where x has none."""
    x, parameters = case.inputs(shape, dtype, device=device)
    x = LAYOUTS[memory](x)
    y = case.variant.function(x, *parameters)
    assert (y.abs() <= x.abs()).all()
    assert torch.equal(y.signbit(), x.signbit())


@sampled
@hypothesis.given(shape=SHAPES, dtype=DTYPE, memory=MEMORY)
def test_zero_taps_halve(device, shape, dtype, memory):
    """sigmoid(0) is 1/2, and halving is exact but for the smallest float16 numbers."""
    x = LAYOUTS[memory](make_x(shape, dtype, device=device))
    assert torch.equal(ECA.function(x, torch.zeros(1, 1, 3, dtype=dtype, device=device)), x / 2)


@sampled
@hypothesis.given(case=CASE, shape=SHAPES, memory=MEMORY)
def test_order_of_positions_does_not_matter_to_the_gate(device, case, shape, memory):
    """Mirroring the map mirrors the output: within the budget, since sums run in another order."""
    layout = LAYOUTS[memory]
    x, parameters = case.inputs(shape, device=device)

    def mirrored(m: Tensor, *rest: Tensor, **options: Any) -> Tensor:
        return case.variant.function(m.flip(-1), *rest, **options).flip(-1)

    check_against_reference(case.variant, layout(x), parameters, function=mirrored, **case.options)


@sampled
@hypothesis.given(case=CASE, shape=SHAPES)
def test_layout_changes_no_more_than_rounding(device, case, shape):
    x, parameters = case.inputs(shape, torch.float64, device=device)
    grad_y = make_x(shape, torch.float64, seed=3, device=device)
    torch.testing.assert_close(
        results(case, channels_last(x), parameters, grad_y), results(case, x, parameters, channels_last(grad_y))
    )
