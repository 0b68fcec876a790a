# SPDX-License-Identifier: MIT
"""``batch_norm_eca`` is ``F.batch_norm``, then ``eca``: values, gradients and running statistics, within the budget."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from layouts import LAYOUTS
from norms import NAMES, Call, check
from torch import Tensor

from eca_cuda import batch_norm_eca, eca, reference
from eca_cuda.testing import make_x

SHAPES = {
    "1d": (4, 5, 9),
    "2d": (3, 8, 5, 7),
    "3d": (2, 16, 3, 2, 5),
    "7x7": (2, 40, 7, 7),
    "one position": (5, 33, 1),
    "one sample": (1, 6, 4, 4),
    "one channel": (3, 1, 6, 6),
    "tiles": (2, 3, 190, 190),
    "wide": (2, 264, 4, 4),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_matches_the_reference(shape, dtype, memory, training, device):
    check(Call(shape, dtype, memory=memory, training=training), device)


OPTIONS: Sequence[Call] = (
    Call(without=("residual",), options={}),
    Call(without=("residual", "bias"), options={"activation": "relu"}),
    Call(options={}),
    Call(k=9, without=(), options={"gate": "hard_sigmoid", "padding_mode": "circular", "activation": "relu"}),
    Call(without=("norm_weight", "norm_bias")),
    Call(without=("norm_weight",)),
    Call(without=("norm_bias",)),
    Call(without=("running_mean", "running_var")),
    Call(dtype=torch.bfloat16, parameter_dtype=torch.float32),
    Call(dtype=torch.float16, parameter_dtype=torch.float32),
)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("call", OPTIONS, ids=str)
def test_every_option_matches_the_reference(call, training, device):
    if not training and "running_mean" in call.without:
        pytest.skip("needs statistics")
    check(replace(call, training=training), device)
    check(replace(call, training=training, memory="channels_last"), device)


@pytest.mark.parametrize("memory", LAYOUTS, ids=str)
def test_every_layout_matches_the_reference(memory, device):
    check(Call((3, 16, 4, 8), memory=memory), device)
    check(Call((3, 16, 4, 8), torch.bfloat16, memory=memory, training=False), device)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_a_large_mean_does_not_cancel(memory, training, device):
    """Means of about 3000 and deviations of about 1: squares that were not centred would have no digit left."""
    check(Call((4, 6, 16, 16), offset=3000.0, memory=memory, training=training, options={}), device)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_inference_matches_the_reference(training, device):
    check(Call((2, 24, 6, 6), training=training), device, differentiate=False)
    check(Call((2, 24, 6, 6), torch.float16, training=training, memory="channels_last"), device, differentiate=False)


def test_the_same_bits_for_any_number_of_threads(threads):
    call = Call((5, 24, 40, 40))
    tensors, grad_y = call.tensors(), make_x(call.shape, seed=5)
    threads(1)
    one = call.run(batch_norm_eca, tensors, grad_y)
    threads(3)
    three = call.run(batch_norm_eca, tensors, grad_y)
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_derivatives_of_first_and_second_order(training, device):
    call = Call((3, 4, 2, 3), torch.float64, training=training, options={})
    tensors = call.tensors()
    names = [n for n in tensors if "running" not in n]

    def function(*values: Tensor) -> Tensor:
        given = {**tensors, **dict(zip(names, values, strict=True))}
        running = (given["running_mean"].clone(), given["running_var"].clone())
        x, weight, *affine = (given[n] for n in ("x", "weight", "norm_weight", "norm_bias"))
        y = batch_norm_eca(x, weight, *affine, *running, residual=given["residual"], training=training)
        return torch.tanh(y)

    leaves = [tensors[n].to(device).requires_grad_() for n in names]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_second_derivatives_with_relu_are_those_of_the_reference(training, device):
    call = Call(dtype=torch.float64, training=training)

    def penalty(function: Any) -> list[Tensor]:
        tensors = {k: t.to(device) for k, t in call.tensors().items()}
        leaves = [t.requires_grad_() for k, t in tensors.items() if "running" not in k]
        y = function(
            *(tensors[k] for k in ("x", "weight", *NAMES[4:])),
            residual=tensors["residual"],
            training=training,
            activation="relu",
        )
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in grads), leaves))

    for ours, theirs in zip(penalty(batch_norm_eca), penalty(reference.batch_norm_eca), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad"])
def test_transforms_of_functorch(transform):
    t = Call(dtype=torch.float64, training=False).tensors()

    def function(x: Tensor) -> Tensor:
        return batch_norm_eca(x, t["weight"], *(t[k] for k in NAMES[4:]), residual=t["residual"])

    if transform == "vmap":
        y = torch.func.vmap(function)(torch.stack([t["x"], -t["x"]]))
        torch.testing.assert_close(y, torch.stack([function(t["x"]), function(-t["x"])]))
    elif transform == "jvp":
        _, tangent = torch.func.jvp(function, (t["x"],), (torch.ones_like(t["x"]),))
        step = 1e-6
        expected = (function(t["x"] + step) - function(t["x"] - step)) / (2 * step)
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-7)
    else:
        x = t["x"].requires_grad_()
        expected = torch.autograd.grad(function(x).sum(), x)[0]
        torch.testing.assert_close(torch.func.grad(lambda x: function(x).sum())(t["x"].detach()), expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_nothing_of_the_size_of_x_is_saved_but_x(training, device):
    t = {
        k: v.to(device)
        for k, v in Call((2, 16, 6, 6), torch.bfloat16, torch.float32, training=training).tensors().items()
    }
    saved: list[Tensor] = []
    leaves = {k: v.requires_grad_() if "running" not in k else v for k, v in t.items()}

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch_norm_eca(
            leaves["x"],
            leaves["weight"],
            *(leaves[k] for k in NAMES[4:]),
            residual=leaves["residual"],
            training=training,
            activation="relu",
        )
    known = {v.data_ptr() for v in leaves.values()}
    new = [s for s in saved if s.data_ptr() not in known]
    assert leaves["x"].data_ptr() in {s.data_ptr() for s in saved}
    assert sorted((tuple(s.shape), s.dtype) for s in new if s.dtype != torch.uint8) == [
        ((2, 16), torch.float32),
        ((16,), torch.float32),
        ((16,), torch.float32),
    ] or sorted(tuple(s.shape) for s in new if s.dtype != torch.uint8) == [(2, 16), (16,), (16,)]
    signs = [s for s in new if s.dtype == torch.uint8]
    assert [s.numel() for s in signs] == [leaves["x"].numel() // 8]


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_compiled_it_is_what_it_is_in_eager_mode(training):
    call = Call((2, 8, 6, 6), training=training)
    tensors, grad_y = call.tensors(), make_x(call.shape, seed=5)
    compiled = torch.compile(batch_norm_eca, fullgraph=True)
    eager = call.run(batch_norm_eca, tensors, grad_y)
    for name, result in call.run(compiled, tensors, grad_y).items():
        torch.testing.assert_close(result, eager[name], msg=name)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"norm_weight": torch.ones(7)}, ValueError, r"norm_weight: expected shape \(8,\), got shape \(7,\)"),
        ({"norm_bias": torch.ones(8).double()}, TypeError, "norm_bias: expected torch.float32"),
        ({"running_mean": torch.ones(8, 1)}, ValueError, "running_mean: expected shape"),
        ({"running_var": torch.ones(8, 1)}, ValueError, "running_var: expected shape"),
        ({"x": None}, TypeError, "x: expected a Tensor, got NoneType"),
        ({"running_var": None}, TypeError, "running_var: expected a Tensor"),
        ({"momentum": None}, TypeError, "momentum: expected a number, got None"),
        ({"training": 1}, TypeError, "training: expected True or False, got 1"),
        ({"x": torch.ones(1, 8, 1), "residual": torch.ones(1, 8, 1)}, ValueError, "x: expected more than one value"),
        ({"weight": torch.ones(1, 1, 4)}, ValueError, "weight: expected shape"),
        ({"residual": torch.ones(3, 8, 5, 6)}, ValueError, "residual: expected shape"),
        ({"activation": "gelu"}, ValueError, "activation: expected one of"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(change, error, message):
    given = Call().tensors() | {"training": True, **change}
    before = {k: given[k].clone() for k in ("running_mean", "running_var") if given[k] is not None}
    positional = [given.pop(k) for k in ("x", "weight", *NAMES[4:])]
    with pytest.raises(error, match=message):
        batch_norm_eca(*positional, **given)
    after = dict(zip(NAMES[6:], positional[4:], strict=True))
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_an_empty_batch_is_what_batch_norm_makes_of_it():
    x, weight = torch.ones(0, 4, 3, 3, requires_grad=True), torch.ones(1, 1, 3)
    y = batch_norm_eca(x, weight, None, None, torch.zeros(4), torch.ones(4))
    assert y.shape == x.shape
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_running_statistics_are_those_of_batch_norm():
    x = make_x((4, 8, 5, 5))
    ours, theirs = ([torch.zeros(8), torch.ones(8)] for _ in range(2))
    for _ in range(3):
        batch_norm_eca(x, torch.ones(1, 1, 3), None, None, *ours, training=True, momentum=0.2)
        F.batch_norm(x, *theirs, training=True, momentum=0.2)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("far", [30.0, 1000.0])
def test_an_outlier_costs_the_variance_no_digits(far, memory, device):
    """The first position of each plane lies far from all others: no pivot for their squares."""
    x = make_x((2, 4, 64, 64))
    x[..., 0, 0] += far
    x = LAYOUTS[memory](x).to(device)
    running = torch.zeros(4, device=device), torch.zeros(4, device=device)
    batch_norm_eca(x, torch.ones(1, 1, 3, device=device), None, None, *running, training=True, momentum=1.0)
    exact = x.double().var((0, 2, 3))
    rounding = sqrt(x[:, 0].numel()) * torch.finfo(torch.float32).eps
    assert float(((running[1] - exact) / exact).abs().max()) < rounding


def test_outputs_that_underflow_pass_no_gradient(device):
    """As in torch, where the ReLU gets the rounded zero."""
    x = torch.full((1, 8, 16), 6e-8, dtype=torch.float16, device=device, requires_grad=True)
    y = eca(
        x, torch.zeros(1, 1, 1, dtype=torch.float16, device=device), torch.full((1,), -8.0).half(), activation="relu"
    )
    y.backward(torch.ones_like(y))
    assert not y.any() and not x.grad.any()
