# SPDX-License-Identifier: MIT
"""Tests of the checks: the error budget and the row check fail for mistakes that kernels make."""

from collections.abc import Callable

import pytest
import torch
from cases import DTYPES
from gradients import check_rows
from layouts import LAYOUTS
from torch import Tensor
from torch.nn import functional as F

from eca_cuda import reference
from eca_cuda.testing import (
    BIDIRECTIONAL,
    ECA,
    MULTI_KERNEL,
    VARIANTS,
    Variant,
    channels_last,
    check_against_reference,
    make_x,
    used_budget,
)

SHAPE = (3, 20, 4, 5)


def test_the_suite_ran_on_cuda(cuda):
    """Skipped, and so visible in the report, if nothing ran on CUDA."""
    assert torch.ones(1, device=cuda).item() == 1


# The rule, on numbers: 1 is exact, eager is off by e, ours may be off by 2 e and one rounding.


@pytest.mark.parametrize("dtype", DTYPES[:1] + DTYPES[2:], ids=str)
def test_budget_is_twice_the_error_of_eager_and_one_rounding(dtype):
    eps, exact = torch.finfo(dtype).eps, torch.ones(4, dtype=torch.float64)
    eager = (exact + 8 * eps).to(dtype)
    assert used_budget("y", (exact + 16 * eps).to(dtype), eager, exact, terms=1) > 0.8
    with pytest.raises(AssertionError, match=r"max error .* of its budget"):
        used_budget("y", (exact + 20 * eps).to(dtype), eager, exact, terms=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_budget_without_an_error_of_eager_is_a_rounding(sign):
    exact = torch.ones(4, dtype=torch.float64)
    eager = exact.float()
    eps = torch.finfo(torch.float32).eps
    assert used_budget("y", eager * (1 + sign * eps), eager, exact, terms=1) > 0
    with pytest.raises(AssertionError, match="budget"):
        used_budget("y", eager * (1 + sign * 4 * eps), eager, exact, terms=1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_budget_compares_nonfinite_positions(value):
    clean = torch.ones(4, dtype=torch.float64)
    spoiled = clean.clone()
    spoiled[2] = value
    assert used_budget("y", spoiled.float(), spoiled.float(), spoiled, terms=1) == 0
    for ours, exact in ((clean, spoiled), (spoiled, clean), (spoiled.flip(0), spoiled)):
        with pytest.raises(AssertionError):
            used_budget("y", ours.float(), exact.float(), exact, terms=1)
    if value != value:
        return
    with pytest.raises(AssertionError):
        used_budget("y", -spoiled.float(), spoiled.float(), spoiled, terms=1)


def test_budget_compares_shape_and_dtype():
    x, parameters = make_x(SHAPE), ECA.make_parameters(20)
    mutants = lambda *a, **k: reference.eca(*a, **k).flatten(), lambda *a, **k: reference.eca(*a, **k).double()
    for mutant in mutants:
        with pytest.raises(AssertionError, match="the reference has"):
            check_against_reference(ECA, x, parameters, function=mutant)


# Mutants: the reference with one mistake each, which the checks must notice.


class _Scaled(torch.autograd.Function):
    """Identity whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, t: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def drop_first_tap(x: Tensor, weight: Tensor, *rest: Tensor, **options) -> Tensor:
    return reference.eca(x, F.pad(weight[..., 1:], (1, 0)), *rest, **options)


def reverse_taps(x: Tensor, weight: Tensor, *rest: Tensor, **options) -> Tensor:
    return reference.eca(x, weight.flip(-1), *rest, **options)


def gate_of_the_next_channel(x: Tensor, *parameters: Tensor, **options) -> Tensor:
    return x * (reference.eca(x, *parameters) / x).roll(1, dims=1)


def mean_over_one_position_less(x: Tensor, *parameters: Tensor, **options) -> Tensor:
    gate = (reference.eca(x[..., 1:], *parameters) / x[..., 1:])[..., :1]
    return x * gate


def no_gradient_through_the_mean(x: Tensor, *parameters: Tensor, **options) -> Tensor:
    gate = reference.eca(x.detach(), *parameters) / x.detach()
    return x * gate


def relu_mask_ignored_in_backward(x: Tensor, *parameters: Tensor, **options) -> Tensor:
    options.pop("activation", None)
    y = reference.eca(x, *parameters, **options)
    return y + (F.relu(y) - y).detach()


def no_residual(x: Tensor, *parameters: Tensor, **options) -> Tensor:
    return reference.eca(x, *parameters)


def parameter_gradient_times(variant: Variant, position: int, factor: float) -> Callable[..., Tensor]:
    def function(x: Tensor, *parameters: Tensor, **options) -> Tensor:
        changed = list(parameters)
        changed[position] = _Scaled.apply(changed[position], factor)
        return variant.reference(x, *changed, **options)

    return function


FORWARD_MUTANTS = [drop_first_tap, reverse_taps, gate_of_the_next_channel, mean_over_one_position_less, no_residual]
BACKWARD_MUTANTS = [no_gradient_through_the_mean, relu_mask_ignored_in_backward]
PARAMETERS = [(v, i) for v in VARIANTS for i in range(len(v.make_parameters(20)))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mutant", FORWARD_MUTANTS, ids=lambda f: f.__name__)
def test_budget_kills_mutants_of_the_forward(mutant, dtype):
    x, parameters = make_x(SHAPE, dtype), ECA.make_parameters(20, dtype)
    options = {"residual": make_x(SHAPE, dtype, seed=2)} if mutant is no_residual else {}
    check_against_reference(ECA, x, parameters, function=reference.eca, **options)
    with pytest.raises(AssertionError, match=r"eca y .* of its budget"):
        check_against_reference(ECA, x, parameters, function=mutant, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mutant", BACKWARD_MUTANTS, ids=lambda f: f.__name__)
def test_budget_kills_mutants_of_the_backward(mutant, dtype):
    x, parameters = make_x(SHAPE, dtype), ECA.make_parameters(20, dtype)
    options = {"grad_y": make_x(SHAPE, dtype, seed=3)}
    if mutant is relu_mask_ignored_in_backward:
        options["activation"] = "relu"
    check_against_reference(ECA, x, parameters, function=reference.eca, **options)
    with pytest.raises(AssertionError, match=r"eca grad_.* of its budget"):
        check_against_reference(ECA, x, parameters, function=mutant, **options)


@pytest.mark.parametrize("factor", [0, 2, -1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant, position", PARAMETERS, ids=lambda value: getattr(value, "name", str(value)))
def test_budget_kills_wrong_parameter_gradients(variant, position, dtype, factor):
    """Of every parameter by itself; hidden layers get two units, since with none there is no gradient."""
    shape_options = {"hidden": 2} if variant is BIDIRECTIONAL else {}
    x, parameters = make_x(SHAPE, dtype), variant.make_parameters(20, dtype, **shape_options)
    grad_y = make_x(SHAPE, dtype, seed=3)
    check_against_reference(variant, x, parameters, grad_y=grad_y, function=variant.reference)
    with pytest.raises(AssertionError, match=f"grad_parameter{position} "):
        mutant = parameter_gradient_times(variant, position, factor)
        check_against_reference(variant, x, parameters, grad_y=grad_y, function=mutant)


# The row check: a small row beside a large one, which the budget on the largest error admits.


@pytest.mark.parametrize("factor", [0, 2, -1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rows_kill_a_wrong_row_that_hides_under_a_large_one(dtype, factor):
    exact = torch.randn(2, 6, 5, dtype=torch.float64)
    exact[1, 3] *= 2.0**-12
    ours = exact.to(dtype)
    check_rows("grad_x", ours, ours, exact, terms=60)
    used_budget("grad_x", ours, ours, exact, terms=60)
    ours = ours.clone()
    ours[1, 3] *= factor
    used_budget("grad_x", ours, exact.to(dtype), exact, terms=60)
    with pytest.raises(AssertionError, match="grad_x: row 9 is off"):
        check_rows("grad_x", ours, exact.to(dtype), exact, terms=60)


@pytest.mark.parametrize("factor", [0, 2, -1])
def test_rows_of_a_parameter_are_its_numbers(factor):
    exact = torch.tensor([[3.0, -1e-3], [1.0, 2.0]], dtype=torch.float64)
    ours = exact.bfloat16()
    check_rows("grad_parameter0", ours, ours, exact, terms=60)
    ours[0, 1] *= factor
    with pytest.raises(AssertionError, match="grad_parameter0: row 1 is off"):
        check_rows("grad_parameter0", ours, exact.bfloat16(), exact, terms=60)


def test_rows_refuse_nan():
    exact = torch.ones(2, 3, 4, dtype=torch.float64)
    ours = exact.clone()
    ours[0, 1, 2] = torch.nan
    with pytest.raises(AssertionError, match="row 1"):
        check_rows("grad_x", ours, exact, exact, terms=24)


# The inputs: layouts that are not what they say would test nothing.


def test_layouts_keep_shape_and_say_what_they_are():
    x = make_x((4, 6, 5, 8))
    made = {name: layout(x) for name, layout in LAYOUTS.items()}
    assert all(t.shape == x.shape for t in made.values())
    assert all(torch.equal(t, x) for name, t in made.items() if "expanded" not in name)
    assert made["contiguous"].is_contiguous()
    assert made["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert not made["sliced-space"].is_contiguous() and not made["cropped"].is_contiguous()
    assert made["offset"].storage_offset() == made["channels_last-offset"].storage_offset() == 1
    assert made["expanded-batch"].stride(0) == 0 and made["expanded-space"].stride(-1) == 0


@pytest.mark.parametrize("spatial", [(5,), (3, 5), (2, 3, 5)], ids=str)
def test_channels_last_has_channels_innermost(spatial):
    x = make_x((2, 4, *spatial))
    assert torch.equal(channels_last(x), x) and channels_last(x).stride(1) == 1
    assert channels_last(x).movedim(1, -1).is_contiguous()


def test_gates_of_the_inputs_spread():
    """Gates all near 0, 1/2 or 1 would make every kernel look right."""
    x = make_x((4, 64, 7, 7))
    for variant, low, high in ((ECA, 0.2, 0.8), (MULTI_KERNEL, 0.3, 0.7), (BIDIRECTIONAL, 0.55, 0.68)):
        gates = variant.reference(x, *variant.make_parameters(64)) / x
        assert gates.min() < low and gates.max() > high
