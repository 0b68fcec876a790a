# SPDX-License-Identifier: MIT
"""Derivatives of every kind and order are right: by finite differences to second order, by the reference beyond."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, Case
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from eca_cuda.testing import BIDIRECTIONAL, ECA, MULTI_KERNEL, channels_last, make_x

TRANSFORMS = {"contiguous": lambda x: x, "channels_last": channels_last}

# Finite differences cost two calls a number: small, yet with C < k, C == k and C > k, and with planes of one.
SHAPES = {
    "eca-k1": (ECA, {"k": 1}, (2, 3, 2, 1)),
    "eca-c<k": (ECA, {"k": 5}, (2, 3, 1, 2)),
    "eca-c=k": (ECA, {"k": 3}, (2, 3, 1, 2)),
    "eca-k9": (ECA, {"k": 9}, (1, 10, 2)),
    "eca-hw1": (ECA, {"k": 3}, (3, 4, 1, 1)),
    "multi_kernel-c1": (MULTI_KERNEL, {}, (2, 1, 2, 2)),
    "multi_kernel-3d": (MULTI_KERNEL, {}, (1, 2, 1, 2, 2)),
    "bidirectional-c2": (BIDIRECTIONAL, {"hidden": 2}, (2, 2, 2, 1)),
}


def leaves(case: Case, shape: Sequence[int], layout: str = "contiguous", device: str = "cpu") -> list[Tensor]:
    """``x``, a residual and the parameters, in float64 and requiring gradients."""
    x, parameters = case.inputs(shape, torch.float64, device=device)
    transform = TRANSFORMS[layout]
    inputs = [transform(x), transform(make_x(shape, torch.float64, seed=2, device=device)), *parameters]
    return [t.detach().requires_grad_() for t in inputs]


def bound(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    """``function`` of ``(x, residual, *parameters)``."""
    return lambda x, residual, *parameters: function(x, *parameters, residual=residual, **options)


def check_first_and_second_order(case: Case, inputs: list[Tensor], **options: Any) -> None:
    function = bound(case.variant.function, **options)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_of_every_option(case, device):
    check_first_and_second_order(case, leaves(case, (2, 4, 1, 2), device=device), **case.options)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_derivatives_of_channels_last(case, device):
    check_first_and_second_order(case, leaves(case, (2, 3, 2, 2), "channels_last", device))


@pytest.mark.parametrize("layout", TRANSFORMS)
@pytest.mark.parametrize("variant, shape_options, shape", SHAPES.values(), ids=SHAPES)
def test_derivatives_of_every_shape(variant, shape_options, shape, layout, device):
    case = Case("shape", variant, shape_options)
    check_first_and_second_order(case, leaves(case, shape, layout, device))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_derivatives_of_relu(case, device):
    """No output of these inputs is so close to 0 that a finite difference crosses it."""
    inputs = leaves(case, (2, 3, 1, 2), device=device)
    y = bound(case.variant.function)(*inputs)
    assert y.abs().min() > 1e-3 and y.gt(0).any() and y.lt(0).any()
    check_first_and_second_order(case, inputs, activation="relu")


def both(case: Case) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return bound(case.variant.function, **case.options), bound(case.variant.reference, **case.options)


def scalar(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: function(*args).pow(3).sum()


def tangents(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(make_x((1, 1, t.numel()), t.dtype, seed=7, device=t.device).view(t.shape) for t in inputs)


def every(inputs: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(inputs)))


# Each takes the function and its arguments; what it returns must be what it returns for the reference.
FUNC_TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, a: grad(scalar(f), every(a))(*a),
    "grad-of-x-only": lambda f, a: grad(scalar(f))(*a),
    "grad-of-grad": lambda f, a: grad(lambda *b: grad(scalar(f), 2)(*b).sum(), every(a))(*a),
    "vjp": lambda f, a: vjp(f, *a)[1](a[0] + 1),
    "jvp": lambda f, a: jvp(f, tuple(a), tangents(a)),
    "jvp-of-x-only": lambda f, a: jvp(lambda x: f(x, *a[1:]), (a[0],), tangents(a[:1])),
    "jacrev": lambda f, a: jacrev(f, every(a))(*a),
    "jacfwd": lambda f, a: jacfwd(f, every(a))(*a),
    "hessian": lambda f, a: hessian(scalar(f), (0, 2))(*a),
    "jacrev-of-jacrev": lambda f, a: jacrev(jacrev(scalar(f), 2), 0)(*a),
    "vmap-x": lambda f, a: vmap(lambda x: f(x, *a[1:]))(torch.stack([a[0], a[0] + 1])),
    "vmap-x-inner-dim": lambda f, a: vmap(lambda x: f(x, *a[1:]), 2, 1)(torch.stack([a[0], a[0] + 1], 2)),
    "vmap-weight": lambda f, a: vmap(lambda w: f(*a[:2], w, *a[3:]))(torch.stack([a[2], a[2] + 1])),
    "vmap-all": lambda f, a: vmap(f)(*(torch.stack([t, t + 1]) for t in a)),
    "per-sample-grad": lambda f, a: vmap(
        lambda x, r: grad(lambda *p: scalar(f)(x[None], r[None], *p), every(a[2:]))(*a[2:])
    )(*a[:2]),
    "jvp-of-grad": lambda f, a: jvp(lambda *b: grad(scalar(f))(*b), tuple(a), tangents(a)),
    "functionalize": lambda f, a: torch.func.functionalize(f)(*a),
}


@pytest.mark.parametrize("transform", FUNC_TRANSFORMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_func_transforms_are_those_of_the_reference(case, transform, device):
    arguments = [t.detach() for t in leaves(case, (2, 4, 1, 3), device=device)]
    ours, theirs = (FUNC_TRANSFORMS[transform](function, arguments) for function in both(case))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_per_sample_gradients_of_a_module(case, device):
    """The documented recipe: functional_call, grad and vmap over samples."""
    torch.manual_seed(0)
    layer = case.variant.module(16, device=device, dtype=torch.float64)
    x = make_x((5, 16, 2, 3), torch.float64, device=device)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, sample[None]).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        alone = torch.autograd.grad(layer(sample[None]).square().sum(), layer.parameters())
        torch.testing.assert_close([g[i] for g in per_sample.values()], list(alone))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_dual_numbers_carry_tangents_without_any_gradient_wanted(case, device):
    """Forward mode requires no gradient, so a shortcut for calls without gradients must not drop tangents."""
    arguments = [t.detach() for t in leaves(case, (2, 4, 1, 3), device=device)]
    results = []
    for function in both(case):
        for moving in (arguments, arguments[:1], arguments[2:3]):
            with torch.no_grad(), forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(t, tangents([t])[0]) if any(t is m for m in moving) else t for t in arguments
                ]
                results.append(forward_ad.unpack_dual(function(*duals)).tangent)
    torch.testing.assert_close(results[:3], results[3:])


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_third_order_derivatives_are_those_of_the_reference(case, device):
    results = []
    for function in both(case):
        inputs = leaves(case, (2, 4, 1, 3), device=device)
        y = scalar(function)(*inputs)
        for _ in range(3):
            (first, *_rest) = torch.autograd.grad(y, inputs, create_graph=True)
            y = first.pow(2).sum()
        results.append([y, *torch.autograd.grad(y, inputs)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_backward_under_create_graph_equals_backward_without(case, device):
    """The two run different code."""
    inputs = leaves(case, (3, 5, 4, 3), device=device)
    y = scalar(bound(case.variant.function, activation="relu"))(*inputs)
    plain = torch.autograd.grad(y, inputs, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, create_graph=True), plain)
