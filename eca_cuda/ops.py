# SPDX-License-Identifier: MIT
"""The private operators ``torch.ops.eca_cuda.*``: their handles, their options, and what they look like to a tracer.

The operators have no gradients of their own. The differentiable functions are in ``functional.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from . import checks
from ._ext import _C

CIRCULAR: int = _C.CIRCULAR
HARD_SIGMOID: int = _C.HARD_SIGMOID
RELU: int = _C.RELU
CROSS_CHANNEL: int = _C.CROSS_CHANNEL
SINGLE_SIGMOID: int = _C.SINGLE_SIGMOID
GRAD_RESIDUAL: int = _C.GRAD_RESIDUAL
BATCH_STATISTICS: int = _C.BATCH_STATISTICS

NORM = "batch_norm_eca"

# What the operators' `flags` say of the three options that all variants have.
FLAGS: dict[tuple[str, str, Optional[str]], int] = {
    (padding_mode, gate, activation): CIRCULAR * (padding_mode == "circular")
    + HARD_SIGMOID * (gate == "hard_sigmoid")
    + RELU * (activation == "relu")
    for padding_mode in checks.PADDING_MODES
    for gate in checks.GATES
    for activation in checks.ACTIVATIONS
}


class Variant(NamedTuple):
    """The three operators of one variant.

    infer(x, *parameters, residual, flags) -> y
    forward(x, *parameters, residual, flags) -> (y, mean, signs)
    backward(grad_y, x, mean, signs or None, *parameters, flags) -> (grad_x, grad_residual, *grad_parameters)

    ``signs`` are those of y, packed, for RELU; empty without. Of batch norm's operators, csrc/schemas.h has the rest.
    """

    infer: Any
    forward: Any
    backward: Any


def _variant(name: str) -> Variant:
    return Variant(*(getattr(torch.ops.eca_cuda, f"{name}_{direction}").default for direction in Variant._fields))


VARIANTS: dict[str, Variant] = {name: _variant(name) for name in (*checks.PARAMETERS, NORM)}

# For eager calls, which need nothing of what an OpOverload does before it calls this.
INFER: dict[str, Callable[..., Tensor]] = {name: variant.infer._op for name, variant in VARIANTS.items()}


def options(name: str, flags: int) -> dict[str, Any]:
    """The keyword arguments of the variant's function that ``flags`` stands for."""
    known: dict[str, Any] = {
        "padding_mode": "circular" if flags & CIRCULAR else "zeros",
        "gate": "hard_sigmoid" if flags & HARD_SIGMOID else "sigmoid",
        "activation": "relu" if flags & RELU else None,
    }
    if name == "multi_kernel_eca":
        known["cross_channel"] = bool(flags & CROSS_CHANNEL)
    if name == "bidirectional_eca":
        known["final_sigmoid"] = not flags & SINGLE_SIGMOID
    return known


def cuda_toolkit() -> str:
    """The version that the CUDA kernels were built with; empty without them."""
    version: str = _C.build_info()["cuda"]
    return version


def check(
    name: str,
    x: Tensor,
    parameters: Sequence[Optional[Tensor]],
    residual: Optional[Tensor],
    flags: int,
    error: Optional[Exception] = None,
) -> None:
    """Raise the exact error if the arguments are invalid; ``error`` is what an operator said of them, if it did."""
    try:
        checks.check(name, x, parameters, residual, bool(flags & CIRCULAR), bool(flags & CROSS_CHANNEL))
        if isinstance(error, NotImplementedError):
            checks.check_device(x.device, cuda_toolkit())
    except (TypeError, ValueError) as exact:
        raise exact from None


def _fake_infer(name: str, x: Tensor, *rest: Any) -> Tensor:
    *parameters, residual, flags = rest
    check(name, x, parameters, residual, flags)
    return torch.empty_like(x)


def _fake_forward(name: str, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    y = _fake_infer(name, x, *rest)
    return y, _numbers(x, *x.shape[:2]), _fake_signs(x, rest[-1])


def _fake_backward(
    name: str, grad_y: Tensor, x: Tensor, mean: Tensor, signs: Optional[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    *parameters, flags = rest
    check(name, x, parameters, None, flags)
    checks.check_saved(grad_y, x, mean, signs, bool(flags & RELU), bool(flags & GRAD_RESIDUAL))
    return _fake_gradients(x, parameters, flags)


def _fake_norm_infer(x: Tensor, *rest: Any) -> Tensor:
    *parameters, norm_mean, norm_var, _, residual, flags = rest
    check("eca", x, parameters[:2], residual, flags)
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
    check("eca", x, parameters[:2], None, flags)
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
    # Overriding what an import before this one, whose modules were dropped, has registered.
    for operator, fake in zip(VARIANTS[name], (infer, forward, backward), strict=True):
        torch.library.register_fake(operator.name(), fake, allow_override=True)


for _name in checks.PARAMETERS:
    _register(_name, *(partial(fake, _name) for fake in (_fake_infer, _fake_forward, _fake_backward)))
_register(NORM, _fake_norm_infer, _fake_norm_forward, _fake_norm_backward)
