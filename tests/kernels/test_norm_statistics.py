# SPDX-License-Identifier: MIT
"""``batch_norm_eca`` matches torch's batch norm in running statistics, strides, symbolic sizes and errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eca_cuda import batch_norm_eca, reference
from eca_cuda.testing import make_x


def given(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Any]:
    """Arguments of a call in training."""
    running = {"running_mean": torch.zeros(8, dtype=dtype), "running_var": torch.ones(8, dtype=dtype)}
    affine = {"norm_weight": torch.ones(8, dtype=dtype), "norm_bias": torch.zeros(8, dtype=dtype)}
    taps = {"weight": torch.ones(1, 1, 3, dtype=dtype), "training": True}
    return {"x": make_x((4, 8, 10), dtype) * scale, **taps, **affine, **running}


@pytest.mark.parametrize("differentiate", [True, False])
def test_running_statistics_of_halves_do_not_overflow_on_the_way(differentiate):
    """Variances beyond 65504 whose tenth is not."""
    ours, expected = given(torch.float16, 400.0), given(torch.float16, 400.0)
    batch_norm_eca(**{**ours, "x": ours["x"].requires_grad_(differentiate)})
    reference.batch_norm_eca(**expected)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours[name], expected[name], msg=name)


def test_infinite_running_statistics_stay_what_torch_makes_of_them():
    ours, expected = given(), given()
    for arguments, function in ((ours, batch_norm_eca), (expected, reference.batch_norm_eca)):
        arguments["running_mean"][0] = arguments["running_var"][1] = torch.inf
        function(**arguments)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours[name], expected[name], msg=name)


def test_backward_of_what_ran_before_the_update():
    """torch's batch norm saves the running statistics, and changes them without telling autograd."""
    gradients = []
    for function in (batch_norm_eca, reference.batch_norm_eca):
        arguments = given()
        affine = [arguments[name].requires_grad_() for name in ("norm_weight", "norm_bias")]
        statistics = arguments["running_mean"], arguments["running_var"]
        before = F.batch_norm(arguments["x"], *statistics, *affine, training=True)
        (before.square().sum() + function(**arguments).square().sum()).backward()
        gradients.append(affine[0].grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_and_parameters_of_any_stride(training):
    ours, expected = ({**given(), "training": training} for _ in range(2))
    for name in ("norm_weight", "norm_bias", "running_mean", "running_var"):
        ours[name] = torch.stack([ours[name], ours[name]], 1)[:, 0].requires_grad_("norm" in name)
    y = batch_norm_eca(**ours)
    torch.testing.assert_close(y.detach(), reference.batch_norm_eca(**expected))
    torch.testing.assert_close(ours["running_var"], expected["running_var"])
    assert torch.autograd.grad(y.sum(), ours["norm_bias"])[0].shape == (8,)


def test_halves_where_autocast_has_made_a_map_float32():
    arguments = given(torch.bfloat16) | {"running_mean": torch.zeros(8), "running_var": torch.ones(8)}
    expected = reference.batch_norm_eca(**{k: t.float() if isinstance(t, Tensor) else t for k, t in arguments.items()})
    with torch.autocast("cpu", torch.bfloat16):
        y = batch_norm_eca(**{**arguments, "x": arguments["x"].float()})
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("differentiate", [True, False])
def test_sizes_that_are_symbols(differentiate):
    arguments = given() | {"x": make_x((4, 8, 10)).requires_grad_(differentiate)}
    expected = arguments | {"running_mean": torch.zeros(8), "running_var": torch.ones(8)}
    torch._dynamo.reset()
    compiled = torch.compile(batch_norm_eca, backend="eager", dynamic=True, fullgraph=True)
    for n in (4, 3):
        y = compiled(**{**arguments, "x": arguments["x"][:n]})
        torch.testing.assert_close(y, batch_norm_eca(**{**expected, "x": expected["x"][:n]}))
    torch.testing.assert_close(arguments["running_var"], expected["running_var"])


WRONG = {
    "eps of 0": ({"eps": 0.0}, ValueError, "eps: expected a positive number for training=True, got 0.0"),
    "negative eps": ({"eps": -1.0, "training": False}, ValueError, "eps: expected no negative number, got -1.0"),
    "mean with gradient": (
        {"running_mean": torch.zeros(8, requires_grad=True)},
        ValueError,
        "running_mean: expected no gradient to be wanted, got requires_grad=True",
    ),
    "wider statistics": (
        {"running_mean": torch.zeros(8, dtype=torch.float64)},
        TypeError,
        "running_mean: expected torch.float32 for x of torch.float32, got torch.float64",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_batch_norm_of_torch_refuses(case):
    changed, kind, message = WRONG[case]
    arguments = given()
    with pytest.raises(kind, match=message):
        batch_norm_eca(**{**arguments, **changed})
    assert arguments["running_var"].equal(torch.ones(8))
