# SPDX-License-Identifier: MIT
"""DTensor: the operators run on shards of the batch, and the gradients of the parameters are then partial sums.

``torch.distributed.tensor`` takes half a second to import, so the rules are registered by a call that finds it
imported.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

from . import checks, ops
from ._compat import TORCH, constant_while_tracing
from .options import GRAD_RESIDUAL, RELU

_registered = False


def register_sharding_rules() -> None:
    """Tell ``torch.distributed.tensor`` how the operators split; a second call does nothing."""
    global _registered
    if _registered:
        return
    _registered = True
    from torch.distributed.tensor.experimental import register_sharding

    for name in checks.PARAMETERS:  # not batch norm, whose statistics are those of the whole batch
        operators = ops.OPERATORS[name]
        register_sharding(operators.infer)(partial(_forward, False))
        register_sharding(operators.forward)(partial(_forward, True))
        register_sharding(operators.backward)(_backward)


@constant_while_tracing
def register_rules_if_used() -> bool:
    """Register the rules if there can be DTensors; whether this call did it.

    Dynamo runs this while tracing, and traces nothing of it.
    """
    if _registered or "torch.distributed.tensor" not in sys.modules:
        return False
    register_sharding_rules()
    return True


def is_dtensor(x: Tensor) -> bool:
    """Whether ``x`` is a DTensor; imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def check(name: str, x: Tensor, parameters: Sequence[Optional[Tensor]]) -> None:
    """Raise TypeError if a parameter is sharded and ``x`` is not: the functions gather nothing."""
    for described, parameter in zip(checks.PARAMETERS[name], parameters, strict=True):
        if parameter is not None and is_dtensor(parameter) and not is_dtensor(x):
            raise TypeError(
                f"{described.name}: expected a plain tensor like x, got a DTensor: "
                "apply fully_shard to the layer, not to the modules in it"
            ) from None


def check_composite(x: Tensor) -> None:
    """Raise NotImplementedError for a DTensor before torch 2.12, which can't flip it and may pad it by a wrong rule."""
    if TORCH < (2, 12) and is_dtensor(x):
        raise NotImplementedError(
            "x: expected a plain tensor, got a DTensor: with these, lengths and gradients of gradients need "
            f"torch >= 2.12, found {torch.__version__}: upgrade, or compute on shards, x.to_local()"
        )


# What a rule returns: for each way to run, the placements of outputs and arguments, None for arguments not tensors.
_Ways = list[tuple[list[Any], list[Optional[Any]]]]


def _forward(saves: bool, x: Any, *rest: Any) -> _Ways:
    *parameters, residual, flags = rest
    replicate, shard = _placements()
    saved = [shard, shard if flags & RELU else replicate] * saves  # the mean, and the signs
    whole = [_at(replicate, t) for t in (*parameters, residual)]
    apart = [*(_at(replicate, t) for t in parameters), _at(shard, residual)]
    return [
        ([replicate] * (1 + len(saved)), [replicate, *whole, None]),
        ([shard, *saved], [shard, *apart, None]),
    ]


def _backward(grad_y: Any, x: Any, mean: Any, signs: Any, *rest: Any) -> _Ways:
    from torch.distributed.tensor import Partial

    *parameters, flags = rest
    replicate, shard = _placements()
    weights = [_at(replicate, t) for t in parameters]
    grad_residual = shard if flags & GRAD_RESIDUAL else replicate
    grads = [replicate if t is None else Partial() for t in parameters]
    whole = (
        [replicate] * (2 + len(parameters)),
        [replicate, replicate, replicate, _at(replicate, signs), *weights, None],
    )
    apart = ([shard, grad_residual, *grads], [shard, shard, shard, _at(shard, signs), *weights, None])
    return [whole, apart]


def _placements() -> tuple[Any, Any]:
    from torch.distributed.tensor import Replicate, Shard

    return Replicate(), Shard(0)


def _at(placement: Any, tensor: Any) -> Optional[Any]:
    return None if tensor is None else placement
