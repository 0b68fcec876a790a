# SPDX-License-Identifier: MIT
"""The private operators ``torch.ops.eca_cuda.*``: their handles, and their fake implementations for tracers.

The operators have no gradients of their own. The differentiable functions are in ``variants/`` and ``norm.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from . import checks
from ._ext import _C
from .options import GRAD_RESIDUAL, RELU, Options, from_flags

NORM = "batch_norm_eca"


class Operators(NamedTuple):
    """The three operators of one variant; csrc/operators.h says what they take and return, with batch norm too.

    infer(x, *parameters, residual, flags) -> y
    forward(x, *parameters, residual, flags) -> (y, mean, signs)
    backward(grad_y, x, mean, signs or None, *parameters, flags) -> (grad_x, grad_residual, *grad_parameters)
    """

    infer: Any
    forward: Any
    backward: Any


def _operators(name: str) -> Operators:
    return Operators(*(getattr(torch.ops.eca_cuda, f"{name}_{direction}").default for direction in Operators._fields))


OPERATORS: dict[str, Operators] = {name: _operators(name) for name in (*checks.PARAMETERS, NORM)}

# For eager calls: without the work that an OpOverload does before it calls this.
INFER: dict[str, Callable[..., Tensor]] = {name: operators.infer._op for name, operators in OPERATORS.items()}


def cuda_toolkit() -> str:
    """The version of the CUDA toolkit that built the kernels; empty in a build without them."""
    version: str = _C.build_info()["cuda"]
    return version


def check(
    name: str, x: Tensor, parameters: Sequence[Optional[Tensor]], residual: Optional[Tensor], options: Options
) -> None:
    """Raise the exact error if the arguments are invalid."""
    circular = options.padding_mode == "circular"
    try:
        checks.check(name, x, parameters, residual, circular, options.cross_channel)
    except (TypeError, ValueError) as exact:
        raise exact from None


def _fake_infer(name: str, x: Tensor, *rest: Any) -> Tensor:
    *parameters, residual, flags = rest
    check(name, x, parameters, residual, from_flags(flags))
    return torch.empty_like(x)


def _fake_forward(name: str, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    y = _fake_infer(name, x, *rest)
    return y, _numbers(x, *x.shape[:2]), _fake_signs(x, rest[-1])


def _fake_backward(
    name: str, grad_y: Tensor, x: Tensor, mean: Tensor, signs: Optional[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    *parameters, flags = rest
    check(name, x, parameters, None, from_flags(flags))
    checks.check_saved(grad_y, x, mean, signs, bool(flags & RELU), bool(flags & GRAD_RESIDUAL))
    return _fake_gradients(x, parameters, flags)


def _fake_norm_infer(x: Tensor, *rest: Any) -> Tensor:
    *parameters, norm_mean, norm_var, _, residual, flags = rest
    check("eca", x, parameters[:2], residual, from_flags(flags))
    checks.check_norm(x, parameters[2], parameters[3], norm_mean, norm_var, norm_mean is None)
    return torch.empty_like(x)


def _fake_norm_forward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    c = x.shape[1]
    signs = _fake_signs(x, rest[-1])
    return _fake_norm_infer(x, *rest), _numbers(x, x.shape[0], c), _numbers(x, c), _numbers(x, c), signs


def _fake_norm_backward(
    grad_y: Tensor, x: Tensor, mean: Tensor, signs: Optional[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    *parameters, norm_mean, norm_var, _, flags = rest
    check("eca", x, parameters[:2], None, from_flags(flags))
    checks.check_norm(x, parameters[2], parameters[3], norm_mean, norm_var, False)
    checks.check_saved(grad_y, x, mean, signs, bool(flags & RELU), bool(flags & GRAD_RESIDUAL))
    return _fake_gradients(x, parameters, flags)


def _numbers(x: Tensor, *sizes: int) -> Tensor:
    return x.new_empty(sizes, dtype=checks.accumulator(x.dtype))


def _fake_signs(x: Tensor, flags: int) -> Tensor:
    return x.new_empty(checks.signs_shape(x) if flags & RELU else (0,), dtype=torch.uint8)


def _fake_gradients(x: Tensor, parameters: Sequence[Optional[Tensor]], flags: int) -> tuple[Tensor, ...]:
    grad_residual = torch.empty_like(x) if flags & GRAD_RESIDUAL else x.new_empty(0)
    first = parameters[0]
    assert first is not None
    return (
        torch.empty_like(x),
        grad_residual,
        *(first.new_empty(0) if p is None else p.new_empty(p.shape) for p in parameters),
    )


def _register(name: str, infer: Any, forward: Any, backward: Any) -> None:
    # An earlier import may have registered these, if its modules were dropped from sys.modules since.
    for operator, fake in zip(OPERATORS[name], (infer, forward, backward), strict=True):
        torch.library.register_fake(operator.name(), fake, allow_override=True)


for _name in checks.PARAMETERS:
    _register(_name, *(partial(fake, _name) for fake in (_fake_infer, _fake_forward, _fake_backward)))
_register(NORM, _fake_norm_infer, _fake_norm_forward, _fake_norm_backward)
