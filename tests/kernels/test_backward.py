# SPDX-License-Identifier: MIT
"""Every gradient matches the reference within the error budget, and every row of it within half of itself."""

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, SHAPES
from gradients import check_gradient_rows
from layouts import LAYOUTS

from eca_cuda.testing import channels_last, evaluate, make_x, used_budget

# Less what has no gradient to speak of: nothing at all is tested by itself below.
FILLED = {name: shape for name, shape in SHAPES.items() if name not in ("n0", "s0")}


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_match_reference_for_every_shape(case, shape, dtype, memory, device, check):
    x, parameters = case.inputs(shape, dtype, device=device)
    x = LAYOUTS[memory](x)
    grad_y = LAYOUTS[memory](make_x(shape, dtype, seed=3, device=device))
    check(case.variant, x, parameters, grad_y=grad_y)
    check_gradient_rows(case.variant, x, parameters, grad_y=grad_y)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("adds", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_match_reference_for_every_option(case, dtype, adds, activation, device, check):
    x, parameters = case.inputs((3, 19, 5, 7), dtype, device=device)
    residual = make_x(x.shape, dtype, seed=2, device=device) if adds else None
    options = {"residual": residual, "activation": activation, **case.options}
    grad_y = make_x(x.shape, dtype, seed=3, device=device)
    check(case.variant, x, parameters, grad_y=grad_y, **options)
    check_gradient_rows(case.variant, x, parameters, grad_y=grad_y, **options)


# x and grad_y are read by one loop, so each layout of one meets the two common layouts of the other, not all.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_match_reference_for_every_layout_of_x(case, layout, grad_layout, dtype, device, check):
    x, parameters = case.inputs((4, 19, 5, 7), dtype, device=device)
    grad_y = LAYOUTS[grad_layout](make_x(x.shape, dtype, seed=3, device=device))
    check(case.variant, LAYOUTS[layout](x), parameters, grad_y=grad_y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_match_reference_for_every_layout_of_grad_y(case, grad_layout, memory, dtype, device, check):
    x, parameters = case.inputs((4, 19, 5, 7), dtype, device=device)
    grad_y = LAYOUTS[grad_layout](make_x(x.shape, dtype, seed=3, device=device))
    residual = make_x(x.shape, dtype, seed=2, device=device)
    options = {"residual": residual, "activation": "relu", "grad_y": grad_y}
    check(case.variant, LAYOUTS[memory](x), parameters, **options)


@pytest.mark.parametrize("shape", [(4, 19, 6), (4, 19, 2, 3, 5)], ids=["1d", "3d"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_match_reference_for_every_layout_in_1d_and_3d(case, layout, shape, device, check):
    x, parameters = case.inputs(shape, device=device)
    grad_y = LAYOUTS[layout](make_x(shape, seed=3, device=device))
    check(case.variant, LAYOUTS[layout](x), parameters, grad_y=grad_y)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_of_a_sum_match_reference(case, memory, device, check):
    """``y.sum().backward()`` passes one number expanded to the shape of ``y``."""
    x, parameters = case.inputs((4, 19, 5, 7), device=device)
    check(case.variant, LAYOUTS[memory](x), parameters, grad_y=torch.ones((), device=device).expand(x.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameters_may_be_float32_while_x_is_half(case, dtype, device, check):
    x, parameters = case.inputs((3, 19, 5, 7), dtype, device=device, parameter_dtype=torch.float32)
    grad_y = make_x(x.shape, dtype, seed=3, device=device)
    options = {"grad_y": grad_y, "residual": make_x(x.shape, dtype, seed=2, device=device), **case.options}
    check(case.variant, x, parameters, **options)
    check(case.variant, channels_last(x), parameters, **options)
    check_gradient_rows(case.variant, x, parameters, **options)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (0, 8, 0)], ids=["n0", "s0", "n0s0"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_of_nothing_are_as_in_eager(case, shape, device, nan_in_fresh_memory):
    """No samples: parameter gradients are zero. No positions: the means are NaN and so is what follows from them."""
    x, parameters = case.inputs(shape, device=device)
    grad_y = make_x(shape, seed=3, device=device)
    ours = evaluate(case.variant.function, x, parameters, grad_y=grad_y).results
    eager = evaluate(case.variant.reference, x, parameters, grad_y=grad_y).results
    assert all(torch.equal(ours[name].isnan(), eager[name].isnan()) for name in eager)
    assert all(torch.equal(ours[name].nan_to_num(), eager[name].nan_to_num()) for name in eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_no_channels_are_accepted(case, dtype, device, nan_in_fresh_memory):
    """Eager's convolution refuses them. Half parameters are not the kernels' own arrays."""
    x, parameters = case.inputs((2, 0, 4, 4), dtype, device=device)
    results = evaluate(case.variant.function, x, parameters, grad_y=x).results
    assert results["y"].shape == results["grad_x"].shape == x.shape
    assert not any(results[f"grad_parameter{i}"].count_nonzero() for i in range(len(parameters)))


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_only_required_gradients_are_computed(case, memory, device):
    x, parameters = case.inputs((3, 19, 5, 7), device=device)
    x = LAYOUTS[memory](x)
    residual, grad_y = (make_x(x.shape, seed=seed, device=device) for seed in (2, 3))
    tensors = {"x": x, "residual": residual} | {f"parameter{i}": p for i, p in enumerate(parameters)}
    options = {"residual": residual, "grad_y": grad_y, "activation": "relu"}
    eager = evaluate(case.variant.reference, x, parameters, **options).results
    exact = evaluate(case.variant.reference, x, parameters, dtype=torch.float64, **options).results

    # Each tensor alone without a gradient, and each alone with one.
    for name in tensors:
        for needed in ({name}, set(tensors) - {name}):
            leaves = {k: t.detach().requires_grad_(k in needed) for k, t in tensors.items()}
            ordered = [leaves[k] for k in tensors if k.startswith("parameter")]
            y = case.variant.function(leaves["x"], *ordered, residual=leaves["residual"], activation="relu")
            y.backward(grad_y)
            assert {k for k, t in leaves.items() if t.grad is not None} == needed
            for k in needed:
                used_budget(k, leaves[k].grad, eager[f"grad_{k}"], exact[f"grad_{k}"], x.numel())


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_add_up_over_several_uses_of_one_tensor(case, device):
    """x as its own residual, and two calls before one backward, as in a network with shared layers."""
    x, parameters = case.inputs((3, 19, 5, 7), torch.float64, device=device)

    def loss(function, x):
        once = function(x, *parameters, residual=x, activation="relu")
        return (once * function(once, *parameters)).sum()

    grads = []
    for function in (case.variant.function, case.variant.reference):
        leaf = x.detach().requires_grad_()
        loss(function, leaf).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_off_centre_taps_get_exactly_zero(device):
    """What the original multi-kernel layer does to all taps but the centre ones, to the bit."""
    case = DEFAULTS[1]
    x, parameters = case.inputs((3, 19, 5, 7), device=device)
    grads = evaluate(case.variant.function, x, parameters, grad_y=make_x(x.shape, seed=3, device=device)).results
    for i, k in enumerate((3, 5, 7)):
        grad = grads[f"grad_parameter{i}"].clone()
        assert grad[:, 0, k // 2].ne(0).all()
        grad[:, 0, k // 2] = 0
        assert grad.eq(0).all()
