# SPDX-License-Identifier: MIT
"""Finds ECA in a graph of torch calls, by the values that Dynamo traced and not by how the shapes are spelled."""

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

from . import checks, ops

_GATES: dict[Any, str] = {torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid"}
_GATES[F.hardsigmoid] = "hard_sigmoid"
_ADAPTIVE_POOLS: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_MEANS: tuple[Any, ...] = ("mean", torch.mean)
_PADS: tuple[Any, ...] = (F.pad, torch._C._nn.pad)
_EXPANDS: tuple[Any, ...] = ("expand_as", "expand")
_PRODUCTS: tuple[Any, ...] = (operator.mul, torch.mul, "mul")
_SUMS: tuple[Any, ...] = (operator.add, torch.add, "add", operator.iadd, "add_")
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, "relu", torch.relu_, "relu_")
# These never change the order of the elements; transpositions do not where they move dimensions of size 1 only.
_RESHAPES: tuple[Any, ...] = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous")
_RESHAPES += (torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze)
_TRANSPOSES: tuple[Any, ...] = ("transpose", torch.transpose)
_PERMUTES: tuple[Any, ...] = ("permute", torch.permute)
_MODE_CHANGES = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast")


@dataclass(frozen=True)
class Match:
    """One ECA: the tensors and options of the call it is, and the calls that it makes superfluous, the last first."""

    nodes: tuple[Node, ...]
    x: Node
    weight: Node
    bias: Optional[Node]
    options: dict[str, Any]


class _Other(Exception):
    """The graph is something else."""


def find(product: Node) -> Optional[Match]:
    """The ECA whose gate is applied by ``product``, with as much of ``+ residual`` and relu as belongs to it."""
    if product.target not in _PRODUCTS or len(product.args) != 2 or product.kwargs:
        return None
    for x, gate in (product.args, product.args[::-1]):
        try:
            plain = _match(product, x, gate)
        except _Other:
            continue
        candidates = [plain, *_with_epilogue(plain)]
        return next((match for match in reversed(candidates) if _is_valid(match) and _is_undisturbed(match)), None)
    return None


def _match(product: Node, x: Any, gate: Any) -> Match:
    value = _value(x)
    _require(3 <= value.dim() <= 5 and _value(product).dtype == value.dtype)
    _require(_has_shape(product, tuple(value.shape)))
    n, c = value.shape[:2]
    nodes = [product]

    def step(node: Node) -> Any:
        """From a call to its first argument; nothing else may use what the call returns."""
        _require(len(node.users) == 1)
        nodes.append(node)
        return node.args[0]

    def back(node: Any) -> Node:
        """From ``node`` to what it was before calls that keep the elements in their order."""
        while isinstance(node, Node) and _keeps_order(node):
            node = step(node)
        _require(isinstance(node, Node))
        return node  # type: ignore[no-any-return]

    while isinstance(gate, Node) and gate.target in _EXPANDS:
        gate = step(gate)
    _require(_has_shape(gate, (n, c, *(1,) * (value.dim() - 2))))
    squash = back(gate)
    _require(squash.target in _GATES and not any(squash.args[1:]) and not any(squash.kwargs.values()))
    conv = back(step(squash))
    sequence, weight, bias, padding = _conv_arguments(conv)
    half = _value(weight).shape[-1] // 2
    step(conv)
    is_circular = sequence.target in _PADS and sequence.args[1:3] == ((half, half), "circular")
    _require(padding == (0 if is_circular else half))
    if is_circular:
        sequence = step(sequence)
    _require(_has_shape(sequence, (n, 1, c)))
    pool = back(sequence)
    _require(_is_pool(pool, value.dim()) and step(pool) is x)
    options = {"padding_mode": "circular" if is_circular else "zeros", "gate": _GATES[squash.target]}
    return Match(tuple(nodes), x, weight, bias, options)


def _with_epilogue(match: Match) -> Iterator[Match]:
    """``match`` with the addition behind it, and with the addition and relu."""
    product = match.nodes[0]
    add = next(iter(product.users))
    if len(product.users) != 1 or add.target not in _SUMS or len(add.args) != 2 or add.kwargs:
        return
    in_place = add.target in (operator.iadd, "add_")
    residuals = [t for t in add.args if isinstance(t, Node) and t is not product]
    if len(residuals) != 1 or (in_place and add.args[0] is not product):
        return
    value, x = residuals[0].meta.get("example_value"), _value(match.x)
    if not isinstance(value, Tensor) or value.dtype != x.dtype or not _has_shape(residuals[0], tuple(x.shape)):
        return
    with_sum = replace(match, nodes=(add, *match.nodes), options=match.options | {"residual": residuals[0]})
    yield with_sum
    relu = next(iter(add.users))
    if len(add.users) == 1 and relu.target in _RELUS:
        yield replace(with_sum, nodes=(relu, *with_sum.nodes), options=with_sum.options | {"activation": "relu"})


def _is_valid(match: Match) -> bool:
    """Whether the operator takes these tensors."""
    x, residual = _value(match.x), match.options.get("residual")
    parameters = [_value(match.weight), None if match.bias is None else _value(match.bias)]
    circular = match.options["padding_mode"] == "circular"
    try:
        checks.check("eca", x, parameters, None if residual is None else _value(residual), circular, False)
        checks.check_device(x.device, ops.cuda_toolkit())
    except (TypeError, ValueError):
        return False
    return True


def _is_undisturbed(match: Match) -> bool:
    """Whether nothing between the first and the last call writes to a tensor or changes what calls mean."""
    node = match.nodes[-1]
    while node is not match.nodes[0]:
        if node not in match.nodes and _writes(node):
            return False
        node = node.next
    return True


def _writes(node: Node) -> bool:
    target = node.target
    if isinstance(target, HigherOrderOperator):  # such as a checkpointed part, whose graph is not looked into
        return True
    if isinstance(target, OpOverload):
        return target._schema.is_mutable
    if isinstance(target, OpOverloadPacket):
        return any(schema.is_mutable for schema in target._schemas.values())
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in _MODE_CHANGES or (name.endswith("_") and not name.endswith("__")):
        return True
    if isinstance(target, str) and name.startswith("__i"):  # __iadd__ and its kind
        return True
    if getattr(operator, f"__{name}__", None) is target and (name.startswith("i") or name == "setitem"):
        return name not in ("index", "inv", "invert")
    if "out" in node.kwargs or node.kwargs.get("inplace"):
        return True
    if node.op != "call_function" or not inspect.isfunction(target):
        return False
    try:
        return bool(inspect.signature(target).bind(*node.args, **node.kwargs).arguments.get("inplace"))
    except (TypeError, ValueError):
        return True


def _conv_arguments(conv: Node) -> tuple[Node, Node, Optional[Node], int]:
    """Input, weight, bias and padding of a convolution of one channel with one filter and odd k."""
    _require(conv.target is F.conv1d)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= dict(zip(names, conv.args, strict=False)) | conv.kwargs
    weight, padding = given["weight"], _one(given["padding"])
    shape = _value(weight).shape
    _require(len(shape) == 3 and tuple(shape[:2]) == (1, 1) and isinstance(padding, int))
    _require((_one(given["stride"]), _one(given["dilation"]), given["groups"]) == (1, 1, 1))
    return given["input"], weight, given["bias"], padding


def _is_pool(node: Node, rank: int) -> bool:
    """Whether it takes the mean over all positions of a map with ``rank`` dimensions."""
    args: tuple[Any, ...] = node.args
    if node.target in _ADAPTIVE_POOLS:
        size = args[1] if len(args) == 2 else None
        sizes = size if isinstance(size, (tuple, list)) else [size]
        return node.target is _ADAPTIVE_POOLS[rank - 3] and all(s == 1 for s in sizes) and not node.kwargs
    if node.target not in _MEANS or len(args) > 3 or not {"dim", "keepdim"} >= node.kwargs.keys():
        return False
    dims: Any = args[1] if len(args) > 1 else node.kwargs.get("dim")
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    return all(isinstance(d, int) for d in dims) and {d % rank for d in dims} == set(range(2, rank))


def _keeps_order(node: Node) -> bool:
    if node.target in _RESHAPES:
        return True
    args: tuple[Any, ...] = node.args
    source = args[0] if args else None
    if node.kwargs or not isinstance(source, Node) or not isinstance(source.meta.get("example_value"), Tensor):
        return False
    shape = _value(source).shape
    order = list(range(len(shape)))
    if node.target in _TRANSPOSES:
        a, b = args[1:]
        order[a], order[b] = order[b], order[a]
    elif node.target in _PERMUTES:
        given = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        order = [d % len(shape) for d in given]
    else:
        return False
    moved = [d for d in order if not _same(shape[d], 1)]
    return moved == sorted(moved)


def _value(node: Any) -> Tensor:
    """What Dynamo saw there."""
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    if not isinstance(value, Tensor):
        raise _Other
    return value


def _has_shape(node: Any, shape: tuple[Any, ...]) -> bool:
    found = _value(node).shape
    return len(found) == len(shape) and all(map(_same, found, shape))


def _same(a: Any, b: Any) -> bool:
    """Equal for all values of free sizes; asked without a guard."""
    return a == b if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


def _one(value: Any) -> Any:
    """``value``, or what is in a sequence of one."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


def _require(condition: bool) -> None:
    if not condition:
        raise _Other
