# SPDX-License-Identifier: MIT
"""The differentiable entry to batch norm followed by ECA; a call takes one of the ways of ``autograd.py``.

The operators change nothing in place, so tracers see pure functions: forward returns the statistics of the batch, and
this file updates the running ones.
"""

from functools import partial
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from . import autograd, checks, compiling, ops, reference, sharding
from .options import BATCH_STATISTICS, GRAD_RESIDUAL, RELU, Activation, Gate, Options, PaddingMode, from_flags, options
from .reference import ChannelConv


class Norm(NamedTuple):
    """The arguments of batch norm besides ``x``."""

    weight: Optional[Tensor]
    bias: Optional[Tensor]
    running_mean: Optional[Tensor]
    running_var: Optional[Tensor]
    training: bool
    momentum: float
    eps: float

    def tensors(self) -> tuple[Optional[Tensor], ...]:
        """The tensors that the operators take; no running statistics in training, which does not read them."""
        return (*self[:2], None, None) if self.training else self[:4]

    def contiguous(self) -> "Norm":
        """With contiguous copies where needed, except of running statistics that are updated in place."""
        weight, bias, mean, var = (None if t is None else t.contiguous() for t in self.tensors())
        given = self._replace(weight=weight, bias=bias)
        return given if self.training else given._replace(running_mean=mean, running_var=var)


def batch_norm_eca(
    x: Tensor,
    weight: Tensor,
    norm_weight: Optional[Tensor],
    norm_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    *,
    bias: Optional[Tensor] = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Optional[Tensor] = None,
    activation: Activation = None,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
) -> Tensor:
    """Batch norm followed by ECA, in the passes over the map that batch norm alone needs.

    ``y = eca(batch_norm(x), weight, bias, residual=residual, activation=activation)``, where ``batch_norm`` is
    ``(x - mean) / sqrt(var + eps) * norm_weight + norm_bias`` with the mean and the variance of each channel: those of
    the batch (``training``), or the running ones.

    Args:
        x: ``[N, C, *spatial]``.
        weight, bias, residual, activation, padding_mode, gate: as in :func:`eca`.
        norm_weight, norm_bias: ``[C]`` or None, in the dtype of ``x``, or float32 while ``x`` is half.
        running_mean, running_var: ``[C]`` likewise; with ``training`` updated in place, or both None.
        training: whether the statistics are those of ``x``.
        momentum: ``running = (1 - momentum) * running + momentum * batch``, with the unbiased variance.
        eps: added to the variance; not negative, and with ``training`` not 0.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what was given; with ``training``, also if
            ``x`` has one value per channel.

    Source: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1, and that of :func:`eca`.
    """
    chosen = options(padding_mode, gate, activation)
    checks.number("momentum", momentum)
    checks.flag("training", training)
    checks.epsilon(eps, training)
    statistics = Norm(norm_weight, norm_bias, running_mean, running_var, training, momentum, eps)
    return apply(x, (weight, bias), statistics, residual, chosen)


def apply(
    x: Tensor, parameters: tuple[Optional[Tensor], ...], norm: Norm, residual: Optional[Tensor], options: Options
) -> Tensor:
    """``eca(batch_norm(x))`` with the epilogue that ``options`` ask for."""
    if autograd.is_traced():
        return _checked(x, parameters, norm, residual, options, torch.compiler.is_compiling())
    try:
        return _call(x, parameters, norm, residual, options)
    except Exception as error:
        return _checked(x, parameters, norm, residual, options, False, error)


def apply_traced(
    x: Tensor, parameters: tuple[Optional[Tensor], ...], norm: Norm, residual: Optional[Tensor], options: Options
) -> Tensor:
    """``apply`` under AOTAutograd, where ``torch.compiler.is_compiling()`` is true from torch 2.13 on only."""
    return _checked(x, parameters, norm, residual, options, True)


def _checked(
    x: Tensor,
    parameters: tuple[Optional[Tensor], ...],
    norm: Norm,
    residual: Optional[Tensor],
    options: Options,
    is_compiling: bool,
    error: Optional[Exception] = None,
) -> Tensor:
    """``apply`` for tracers, and after an ``error``: explains what is wrong with the arguments or finds another way."""
    given = parameters, norm[:2]
    parameters, affine = (autograd.widened(x, tensors) for tensors in given)
    norm = norm._replace(weight=affine[0], bias=affine[1])
    is_new = parameters is not given[0] or affine is not given[1]
    try:
        ops.check("eca", x, parameters, residual, options)
        checks.check_norm(x, *norm[:5])
    except (TypeError, ValueError) as exact:
        raise exact from None
    if is_compiling and compiling.inlines(x, _wants_grad(x, parameters, norm, residual)):
        return composite(x, parameters, norm, residual, options, compiling.shifted_conv)
    tensors = (x, *parameters, *norm[:4], residual)
    is_plain = not any(t is not None and (sharding.is_dtensor(t) or autograd.is_foreign(t)) for t in tensors)
    if autograd.needs_composite() or not is_plain or x.numel() == 0:
        return composite(x, parameters, norm, residual, options)
    if not all(t is None or t.is_contiguous() for t in norm.tensors()):  # the operators require it
        norm, is_new = norm.contiguous(), True
    if error is None or is_new:
        return _call(x, parameters, norm, residual, options, is_compiling)
    if isinstance(error, NotImplementedError):
        checks.check_device(x.device, ops.cuda_toolkit())
    raise error


def _wants_grad(x: Tensor, parameters: tuple[Optional[Tensor], ...], norm: Norm, residual: Optional[Tensor]) -> bool:
    return torch.is_grad_enabled() and autograd.any_requires_grad(x, residual, *parameters, norm.weight, norm.bias)


def _wants_grad_of_statistics(norm: Norm) -> bool:
    return torch.is_grad_enabled() and autograd.any_requires_grad(norm.running_mean, norm.running_var)


def _call(
    x: Tensor,
    parameters: tuple[Optional[Tensor], ...],
    norm: Norm,
    residual: Optional[Tensor],
    options: Options,
    is_compiling: bool = False,
) -> Tensor:
    """The operators, and the update of the running statistics."""
    y: Tensor
    count = x.numel() // max(x.shape[1], 1)
    too_few = count < (2 if norm.training else 1)  # not count <= norm.training: symbolic sizes refuse it
    if too_few or (norm.training and not _can_update(norm, x)) or _wants_grad_of_statistics(norm):
        raise ValueError("eca_cuda: invalid argument x or running_mean")
    if _wants_grad(x, parameters, norm, residual):
        # As in torch, before anything is saved, where a checkpoint may stop a recomputation. Traced, it comes after.
        update = None if is_compiling else partial(_update, norm, count)
        given = autograd.distinct(x, residual, *parameters, *norm.tensors())
        y, mean, var = _FusedNorm.apply(options.flags | BATCH_STATISTICS * norm.training, norm.eps, update, *given)
        if is_compiling:
            _update(norm, count, mean, var, True)
    elif norm.training:
        y, _, mean, var, _ = ops.OPERATORS[ops.NORM].forward(
            x, *parameters, *norm.tensors(), norm.eps, residual, options.flags
        )
        _update(norm, count, mean, var, is_compiling)
    else:
        infer: Any = ops.INFER[ops.NORM]
        y = infer(x, *parameters, *norm.tensors(), norm.eps, residual, options.flags)
    return y


def _update(norm: Norm, count: int, mean: Tensor, var: Tensor, is_compiling: bool = False) -> None:
    """Move the running statistics towards those of the batch, whose variance is biased; the running one is not."""
    if norm.training and norm.running_mean is not None and norm.running_var is not None:
        _move(norm.running_mean, mean, norm.momentum, 1.0, is_compiling)
        _move(norm.running_var, var, norm.momentum, count / (count - 1), is_compiling)


def _move(running: Tensor, batch: Tensor, momentum: float, factor: float, is_compiling: bool) -> None:
    """Update as torch does: with one rounding, without lerp, which makes NaN of infinity, and hidden from autograd.

    Autograd would otherwise refuse backward of an earlier torch batch norm that saved these running statistics.
    """
    running = running if is_compiling else running.data
    wide = running.to(batch.dtype)  # a copy only if they are half
    wide.mul_(1 - momentum).add_(batch, alpha=momentum * factor)
    if wide is not running:
        running.copy_(wide)


def _can_update(norm: Norm, x: Tensor) -> bool:
    """Whether both running statistics are given and fit, or neither is given: neither may be updated alone."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return mean is var
    fit = mean.shape == var.shape == x.shape[1:2] and mean.device == var.device == x.device
    return fit and mean.dtype == var.dtype and mean.dtype in (x.dtype, torch.float32)


def composite(
    x: Tensor,
    parameters: tuple[Optional[Tensor], ...],
    norm: Norm,
    residual: Optional[Tensor],
    options: Options,
    conv: ChannelConv = reference.channel_conv,
) -> Tensor:
    """``apply`` in plain torch operators."""
    weight, bias = parameters
    assert weight is not None
    with autograd.without_autocast(x):
        return reference.batch_norm_eca(
            x,
            weight,
            *norm[:4],
            bias=bias,
            training=norm.training,
            momentum=norm.momentum,
            eps=norm.eps,
            residual=residual,
            activation=options.activation,
            padding_mode=options.padding_mode,
            gate=options.gate,
            conv=conv,
        )


class _FusedNorm(torch.autograd.Function):
    """Saves x, the parameters, the means [N, C], the statistics [C] and, for relu, the signs of y."""

    @staticmethod
    def forward(
        ctx: Any,
        flags: int,
        eps: float,
        update: Any,
        x: Tensor,
        residual: Optional[Tensor],
        *tensors: Optional[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        y: Tensor
        forward = ops.OPERATORS[ops.NORM].forward
        y, mean, norm_mean, norm_var, signs = forward(x, *tensors, eps, residual, flags & ~BATCH_STATISTICS)
        if update is not None:
            update(norm_mean, norm_var)
        ctx.flags, ctx.eps = flags, eps
        saved = (x, mean, signs if flags & RELU else None, *tensors[:4], norm_mean, norm_var)
        ctx.there = [t is not None for t in saved]
        ctx.save_for_backward(*[t for t in saved if t is not None])
        ctx.mark_non_differentiable(norm_mean, norm_var)
        ctx.set_materialize_grads(False)
        return y, norm_mean, norm_var

    @staticmethod
    def backward(ctx: Any, grad_y: Optional[Tensor], *_: Any) -> tuple[Optional[Tensor], ...]:
        if grad_y is None:
            return (None,) * 11
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad_y)
        flags, needs = ctx.flags, ctx.needs_input_grad
        x, mean, signs, *tensors = autograd.saved_by(ctx)
        if needs[4] and signs is not None:
            flags |= GRAD_RESIDUAL
        grads = ops.OPERATORS[ops.NORM].backward(grad_y, x, mean, signs, *tensors, ctx.eps, flags)
        grad_residual = (grad_y if signs is None else grads[1]) if needs[4] else None
        wanted = (grad if needed else None for grad, needed in zip(grads[2:], needs[5:9], strict=True))
        return None, None, None, grads[0] if needs[3] else None, grad_residual, *wanted, None, None


def _differentiable_backward(ctx: Any, grad_y: Tensor) -> tuple[Optional[Tensor], ...]:
    """The same gradients as a graph, for create_graph=True: the composite, differentiated by torch itself."""
    x, mean, signs, *tensors = autograd.saved_by(ctx)
    grad_sum, needs = grad_y, ctx.needs_input_grad
    if signs is not None:  # the operator unpacks them
        backward, flags = ops.OPERATORS[ops.NORM].backward, ctx.flags | GRAD_RESIDUAL
        with torch.no_grad():
            passes = backward(torch.ones_like(x), x, mean, signs, *tensors, ctx.eps, flags)[1]
        grad_sum = grad_y.masked_fill(passes == 0, 0)
    with torch.enable_grad():
        # Aliases, so that a tensor that was passed twice gets each gradient once.
        x = x.view_as(x)
        weight, bias, *affine = (None if t is None else t.view_as(t) for t in tensors[:4])
        is_batch = bool(ctx.flags & BATCH_STATISTICS)
        dtype = next((t.dtype for t in affine if t is not None), tensors[4].dtype)
        statistics = [None, None] if is_batch else [t.to(dtype) for t in tensors[4:]]
        norm = Norm(affine[0], affine[1], statistics[0], statistics[1], is_batch, 0.0, ctx.eps)
        out = composite(x, (weight, bias), norm, None, from_flags(ctx.flags & ~RELU))
        needed = (needs[3], *needs[5:9])
        inputs = (x, weight, bias, *affine)
        wanted = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
        grads = iter(torch.autograd.grad(out, wanted, grad_sum, create_graph=True) if wanted else ())
    grad_x, *rest = (next(grads) if need else None for need in needed)
    return None, None, None, grad_x, grad_sum if needs[4] else None, *rest, None, None
