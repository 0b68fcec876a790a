# SPDX-License-Identifier: MIT
"""The differentiable entry to the operators. A call takes one of three ways:

infer      no gradient is wanted: the operator that saves nothing
fused      reverse mode, eager or compiled: the forward and the backward operator
composite  the reference, plain torch operators: under torch.func transforms and forward-mode AD, which would
           otherwise need extra Functions that cost every ordinary call; under torch.onnx.export, which then needs no
           custom translation; under torch.jit.trace, and torch.export with gradients, as programs hold no Functions;
           compiled or exported where ``compile_mode`` inlines the call; if parameters are tensor subclasses that have
           no rule for the operators; with ``lengths``; and to derive second and higher derivatives from

An eager call goes straight to the operators. If they refuse it, or a tracer sees the call, ``apply_carefully`` checks
the arguments, with exact messages, and then chooses the way.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import checks, compiling, ops, reference, sharding, table
from ._compat import has_autocast, is_autocast
from .options import GRAD_RESIDUAL, RELU, Options, from_flags

Parameters = tuple[Optional[Tensor], ...]

_CAST_BY_AUTOCAST = {torch.float32, torch.float16, torch.bfloat16}

functorch_is_active = torch._C._are_functorch_transforms_active
jit_trace = torch._C._get_tracing_state  # returns None except under torch.jit.trace


def apply(
    name: str,
    x: Tensor,
    parameters: Parameters,
    residual: Optional[Tensor],
    options: Options,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
) -> Tensor:
    """``y = activation(x * gate + residual)`` by the variant called ``name``."""
    if channels_dim != 1:
        checks.check_channels_last(channels_dim, x, residual, lengths)
        moved = None if residual is None else residual.movedim(-1, 1)
        return apply(name, x.movedim(-1, 1), parameters, moved, options, lengths).movedim(1, -1)
    if lengths is not None:
        return _apply_to_lengths(name, x, parameters, residual, options, lengths)
    traced = is_traced()
    if not traced:
        try:
            if torch.is_grad_enabled() and any_requires_grad(x, residual, *parameters):
                return _Fused.apply(name, options.flags, x, residual, *parameters)  # type: ignore[no-any-return]
            return ops.INFER[name](x, *parameters, residual, options.flags)
        except Exception as error:
            if not _has_another_way(name, x, parameters, residual, options, error):
                raise
    return apply_carefully(name, x, parameters, residual, options, traced)


def _has_another_way(
    name: str, x: Tensor, parameters: Parameters, residual: Optional[Tensor], options: Options, error: Exception
) -> bool:
    """Whether ``apply_carefully`` would do something else than the call that raised ``error``. Explains bad arguments.

    The same call is never made twice: an error may come from a hook of saved tensors. By such an error
    ``torch.utils.checkpoint`` ends its recomputation.
    """
    if widened(x, parameters) is not parameters or any(map(is_foreign, parameters)):
        return True
    ops.check(name, x, parameters, residual, options)
    sharding.check(name, x, parameters)
    if not isinstance(error, NotImplementedError):
        return False
    if sharding.register_rules_if_used():
        return True
    try:
        checks.check_device(x.device, ops.cuda_toolkit())
    except ValueError as exact:
        raise exact from None
    return False


def apply_carefully(
    name: str, x: Tensor, parameters: Parameters, residual: Optional[Tensor], options: Options, traced: bool
) -> Tensor:
    """``apply`` if a tracer sees the call or an operator refused it: invalid arguments, autocast, subclasses."""
    parameters = widened(x, parameters)
    ops.check(name, x, parameters, residual, options)
    sharding.check(name, x, parameters)
    if needs_composite():
        return composite(name, x, parameters, residual, options)
    differentiated = torch.is_grad_enabled() and any_requires_grad(x, residual, *parameters)
    if any(map(is_foreign, parameters)) or (traced and compiling.inlines(x, differentiated)):
        conv = compiling.shifted_conv if traced else reference.channel_conv
        return composite(name, x, parameters, residual, options, conv)
    if traced or sharding.is_dtensor(x):
        sharding.register_rules_if_used()
    if differentiated:
        given = distinct(x, residual, *parameters)
        return _Fused.apply(name, options.flags, *given)  # type: ignore[no-any-return]
    return ops.OPERATORS[name].infer(x, *parameters, residual, options.flags)  # type: ignore[no-any-return]


def _apply_to_lengths(
    name: str, x: Tensor, parameters: Parameters, residual: Optional[Tensor], options: Options, lengths: Tensor
) -> Tensor:
    """``apply`` with means over the first ``lengths[n]`` positions, by the composite, as no kernel does that."""
    parameters = widened(x, parameters)
    ops.check(name, x, parameters, residual, options)
    is_compiling = torch.compiler.is_compiling()
    if not is_compiling:
        sharding.check_composite(x)
    # Values of subclasses are not checked: a fake tensor has none, and a DTensor holds only a shard of them.
    has_values = type(lengths) is Tensor and not (functorch_is_active() or is_compiling or jit_trace() is not None)
    checks.check_lengths(lengths, x, has_values)
    is_shifted = compiling.mode() == "inline" if is_compiling else sharding.is_dtensor(x)
    conv = compiling.shifted_conv if is_shifted else reference.channel_conv
    return composite(name, x, parameters, residual, options, conv, lengths)


def is_traced() -> bool:
    """Whether a transform or a tracer sees this call."""
    return (
        functorch_is_active()
        or forward_ad._current_level >= 0
        or torch.compiler.is_compiling()
        or jit_trace() is not None
    )


def needs_composite() -> bool:
    """Whether a transform or a tracer that handles plain operators only is active."""
    return (
        functorch_is_active()
        or forward_ad._current_level >= 0
        or torch.onnx.is_in_onnx_export()
        or jit_trace() is not None
    )


def is_foreign(parameter: Any) -> bool:
    """Whether this is a subclass that may support plain operators only, such as torchao's quantised weights."""
    if parameter is None:
        return False
    return hasattr(type(parameter), "__tensor_flatten__") and not sharding.is_dtensor(parameter)


def widened(x: Tensor, parameters: Parameters) -> tuple[Any, ...]:
    """``parameters``, but all in float32 under autocast if the operators would refuse their dtypes with that of ``x``.

    So an entirely half model still works after autocast has made a map float32.
    """
    given = [t for t in parameters if t is not None]
    if not all(isinstance(t, Tensor) for t in (x, *given)):
        return parameters
    dtypes = {t.dtype for t in given}
    go_together = dtypes in ({x.dtype}, {torch.float32})
    if go_together or not {x.dtype, *dtypes} <= _CAST_BY_AUTOCAST or not is_autocast(x.device.type):
        return parameters
    return tuple(None if t is None else t.float() for t in parameters)


def distinct(*tensors: Optional[Tensor]) -> list[Optional[Tensor]]:
    """``tensors``, with an alias in place of each repeated one, as in ``residual=x``.

    If a tensor is repeated, Dynamo silently loses gradients in torch 2.11 and 2.12, and breaks the graph from 2.13 on.
    """
    return [t.view_as(t) if t is not None and any(t is s for s in tensors[:i]) else t for i, t in enumerate(tensors)]


def any_requires_grad(*tensors: Optional[Tensor]) -> bool:
    for t in tensors:  # noqa: SIM110 - any() with a generator takes three times as long
        if t is not None and t.requires_grad:
            return True
    return False


def composite(
    name: str,
    x: Tensor,
    parameters: Parameters,
    residual: Optional[Tensor],
    options: Options,
    conv: reference.ChannelConv = reference.channel_conv,
    lengths: Optional[Tensor] = None,
) -> Tensor:
    """``apply`` by the reference. It ignores autocast, as the operators do: ``y`` has the dtype of ``x``."""
    variant = table.VARIANTS[name]
    given: dict[str, Any] = {option: getattr(options, option) for option in variant.options}
    if "padding_mode" in given:
        given["conv"] = conv
    given |= {"residual": residual, "activation": options.activation, "lengths": lengths}
    with without_autocast(x):
        return variant.reference(x, *parameters, **given)


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False) if has_autocast(x.device.type) else nullcontext()


class _Fused(torch.autograd.Function):
    """Saves x, the parameters, the means [N, C] and, for relu, the signs of y. Backward computes the gate anew."""

    @staticmethod
    def forward(ctx: Any, name: str, flags: int, x: Tensor, residual: Optional[Tensor], *parameters: Any) -> Tensor:
        y: Tensor
        y, mean, signs = ops.OPERATORS[name].forward(x, *parameters, residual, flags)
        ctx.variant, ctx.flags = name, flags  # not ctx.name, which is the node's own method
        saved = (x, mean, signs if flags & RELU else None, *parameters)
        ctx.there = [t is not None for t in saved]
        ctx.save_for_backward(*[t for t in saved if t is not None])  # torchviz shows each of saved_tensors
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Optional[Tensor], ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad_y)
        x, mean, signs, *parameters = saved_by(ctx)
        flags, wants_residual = ctx.flags, ctx.needs_input_grad[3]
        if wants_residual and signs is not None:
            flags |= GRAD_RESIDUAL
        grads = ops.OPERATORS[ctx.variant].backward(grad_y, x, mean, signs, *parameters, flags)
        grad_residual = (grad_y if signs is None else grads[1]) if wants_residual else None
        wanted = (grad if needed else None for grad, needed in zip(grads[2:], ctx.needs_input_grad[4:], strict=True))
        return None, None, grads[0] if ctx.needs_input_grad[2] else None, grad_residual, *wanted


def saved_by(ctx: Any) -> list[Any]:
    """The saved tensors, with None for those that were absent."""
    tensors = list(ctx.saved_tensors)
    return [tensors.pop(0) if there else None for there in ctx.there]


def _differentiable_backward(ctx: Any, grad_y: Tensor) -> tuple[Optional[Tensor], ...]:
    """The same gradients as a graph, for create_graph=True: the composite, differentiated by torch itself."""
    x, mean, signs, *parameters = saved_by(ctx)
    sharding.check_composite(x)
    grad_sum = grad_y
    if signs is not None:  # the operator unpacks them
        flags = ctx.flags | GRAD_RESIDUAL
        with torch.no_grad():
            passes = ops.OPERATORS[ctx.variant].backward(torch.ones_like(x), x, mean, signs, *parameters, flags)[1]
        grad_sum = grad_y.masked_fill(passes == 0, 0)
    with torch.enable_grad():
        # Aliases, so that a tensor that was passed twice gets each gradient once.
        x = x.view_as(x)
        parameters = [None if t is None else t.view_as(t) for t in parameters]
        # On DTensors, torch 2.14 silently computes wrong second derivatives of a convolution by its weight.
        conv = compiling.shifted_conv if sharding.is_dtensor(x) else reference.channel_conv
        out = composite(ctx.variant, x, tuple(parameters), None, from_flags(ctx.flags & ~RELU), conv)
        needed = (ctx.needs_input_grad[2], *ctx.needs_input_grad[4:])
        wanted = [t for t, need in zip((x, *parameters), needed, strict=True) if need and t is not None]
        grads = iter(torch.autograd.grad(out, wanted, grad_sum, create_graph=True) if wanted else ())
    grad_x, *grad_parameters = (next(grads) if need else None for need in needed)
    return None, None, grad_x, grad_sum if ctx.needs_input_grad[3] else None, *grad_parameters
