# SPDX-License-Identifier: MIT
"""Finds ECA in a graph of torch calls by the shapes that Dynamo traced, however the code spells them.

Calls are followed from x to the gate with the *axes* of their results: for each dimension of a result, the dimensions
of x that it consists of, outermost first. Dimensions of size 1 are dropped. Views rearrange axes and means remove them;
the axes that remain identify the dimension of the channels.
"""

import inspect
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import Node

from .. import checks, ops

_GATES: dict[Any, str] = dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid", torch.sigmoid_, "sigmoid_"), "sigmoid")
_GATES[F.hardsigmoid] = "hard_sigmoid"
# Pools, with the number of last dimensions that they pool.
_ADAPTIVE_POOLS: dict[Any, int] = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}
_POOLS: dict[Any, int] = _ADAPTIVE_POOLS | {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
_MEANS: tuple[Any, ...] = ("mean", torch.mean)
_PADS: tuple[Any, ...] = (F.pad, torch._C._nn.pad)
_EXPANDS: tuple[Any, ...] = ("expand_as", "expand", "broadcast_to", torch.broadcast_to)
_PRODUCTS: tuple[Any, ...] = (operator.mul, torch.mul, "mul", torch.multiply, "multiply")
_SUMS: tuple[Any, ...] = (operator.add, torch.add, "add", operator.iadd, "add_")
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, "relu", torch.relu_, "relu_")
# These keep the order of the elements if they keep their number.
_RESHAPES: tuple[Any, ...] = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "to")
_RESHAPES += ("view_as", "reshape_as", "type_as", operator.getitem)
_RESHAPES += (torch.reshape, torch.flatten, torch.unflatten, torch.squeeze, torch.unsqueeze)
_MOVES = ("transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims")
# x.mT is torch.ops.aten.mT(x) from torch 2.14 on, and getattr(x, "mT") before.
_PERMUTES: tuple[Any, ...] = (*_MOVES, *(getattr(torch, name) for name in _MOVES), torch.ops.aten.mT, getattr)
_MODE_CHANGES = {"_set_grad_enabled", "_enter_autocast", "_exit_autocast"}
_MODE_CHANGES |= {"_enter_inference_mode", "_exit_inference_mode"}

# A letter for each kind of call, and the order in which they turn x into a gate.
_LETTERS: dict[Any, str] = {}
for _letter, _targets in {
    "v": (*_RESHAPES, *_PERMUTES),
    "m": (*_MEANS, *_POOLS),
    "p": _PADS,
    "c": (F.conv1d,),
    "s": (*_GATES,),
    "e": _EXPANDS,
}.items():
    _LETTERS |= dict.fromkeys(_targets, _letter)
_ORDER = re.compile("v*(mv*)+p?cv*sv*e*")

_Axes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Match:
    """One ECA: the tensors and options of the fused call, and the calls that it replaces, the last first."""

    nodes: tuple[Node, ...]
    x: Node
    weight: Node
    bias: Optional[Node]
    options: dict[str, Any]


class NoMatch(Exception):
    """The graph computes something else."""


def find(product: Node) -> Optional[Match]:
    """The ECA whose gate ``product`` applies, with ``+ residual`` and relu if they follow."""
    if product.target not in _PRODUCTS or len(product.args) != 2 or product.kwargs:
        return None
    for x, gate in (product.args, product.args[::-1]):
        try:
            plain = _match(product, x, gate)
        except NoMatch:
            continue
        candidates = [plain, *_with_epilogue(plain)]
        return next((match for match in reversed(candidates) if is_valid(match) and is_movable(match)), None)
    return None


def _match(product: Node, x: Any, gate: Any) -> Match:
    value = value_of(x)
    require(3 <= value.dim() <= 5 and value_of(product).dtype == value.dtype)
    require(_has_shape(product, value.shape))
    calls = _calls(x, gate)
    letters = "".join(_LETTERS[call.target] for call in calls)
    require(_ORDER.fullmatch(letters) is not None)
    # Nothing else may use their results, except for views of x, which cost nothing.
    require(all(len(call.users) == 1 for call in calls[letters.index("m") :]))

    axes: _Axes = [() if _same(size, 1) else (d,) for d, size in enumerate(value.shape)]
    of_x = axes
    conv, squash = calls[letters.index("c")], calls[letters.index("s")]
    options: dict[str, Any] = {"gate": _gate(squash)}
    for call, letter in zip(calls, letters, strict=True):
        if letter == "v":
            axes = _viewed(call, axes, value.shape)
        elif letter == "m":
            axes = _pooled(call, axes)
        elif call is conv:
            weight, bias, padding = _conv_arguments(conv)
            half = value_of(weight).shape[-1] // 2
            is_circular = "p" in letters
            require(padding == (0 if is_circular else half))
            require(not is_circular or _is_circular_pad(conv.args[0], half))
            options["channels_dim"] = channels_dim = _channels_dim(axes, of_x)
            options["padding_mode"] = "circular" if is_circular else "zeros"
    require(list(axes) == [dims if d in (0, channels_dim % value.dim()) else () for d, dims in enumerate(of_x)])
    return Match((product, *reversed(calls)), x, weight, bias, options)


def _calls(x: Any, gate: Any) -> list[Node]:
    """The calls that lead from ``x`` to ``gate``, in order; each takes the result of the one before."""
    found: list[Node] = []
    node = gate
    while node is not x:
        require(isinstance(node, Node) and node.target in _LETTERS and len(node.args) > 0)
        found.append(node)
        node = node.args[0]
    return found[::-1]


def _channels_dim(axes: _Axes, of_x: _Axes) -> int:
    """The dimension of x that is last in a sequence ``[N, 1, C]`` with these axes: 1 or -1."""
    for d in (1, -1):
        if list(axes) == [of_x[0], (), of_x[d]]:
            return d
    raise NoMatch


def _with_epilogue(match: Match) -> Iterator[Match]:
    """``match`` with the addition after it, and with the addition and relu."""
    product = match.nodes[0]
    add = next(iter(product.users), None)  # None if the result is unused
    if add is None or len(product.users) != 1 or add.target not in _SUMS or len(add.args) != 2 or add.kwargs:
        return
    in_place = add.target in (operator.iadd, "add_")
    residuals = [t for t in add.args if isinstance(t, Node) and t is not product]
    if len(residuals) != 1 or (in_place and add.args[0] is not product):
        return
    value, x = residuals[0].meta.get("example_value"), value_of(match.x)
    if not isinstance(value, Tensor) or value.dtype != x.dtype or not _has_shape(residuals[0], tuple(x.shape)):
        return
    with_sum = replace(match, nodes=(add, *match.nodes), options=match.options | {"residual": residuals[0]})
    yield with_sum
    relu = next(iter(add.users), None)
    if relu is not None and len(add.users) == 1 and relu.target in _RELUS:
        yield replace(with_sum, nodes=(relu, *with_sum.nodes), options=with_sum.options | {"activation": "relu"})


def is_valid(match: Match) -> bool:
    """Whether the operator takes these tensors."""

    def as_map(node: Node) -> Tensor:
        return value_of(node).movedim(match.options["channels_dim"], 1)

    x, residual = as_map(match.x), match.options.get("residual")
    parameters = [value_of(match.weight), None if match.bias is None else value_of(match.bias)]
    circular = match.options["padding_mode"] == "circular"
    try:
        checks.check("eca", x, parameters, None if residual is None else as_map(residual), circular, False)
        checks.check_device(x.device, ops.cuda_toolkit())
    except (TypeError, ValueError):
        return False
    return True


def is_movable(match: Match) -> bool:
    """Whether no other node between the first and the last call writes to a tensor or changes a mode of torch."""
    node = match.nodes[-1]
    while node is not match.nodes[0]:
        if node not in match.nodes and _writes(node) and not _counts_batches(node):
            return False
        node = node.next
    return True


def _counts_batches(node: Node) -> bool:
    """Whether it is ``num_batches_tracked.add_(1)`` of another batch norm, which does not affect ECA."""
    count = node.args[0] if node.target == "add_" and node.args else None
    if not isinstance(count, Node) or count.op not in ("placeholder", "get_attr"):
        return False
    value = traced(count)
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.dim() == 0


def _writes(node: Node) -> bool:
    target = node.target
    if isinstance(target, HigherOrderOperator):  # such as a checkpoint, whose graph is not inspected
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


def arguments(node: Node, *names: str, **defaults: Any) -> dict[str, Any]:
    """The arguments of a call by name. NoMatch if it has others than these names."""
    require(len(node.args) <= len(names))
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    require(given.keys() <= set(names))
    return defaults | given


def _gate(squash: Node) -> str:
    arguments(squash, "input", "inplace")
    return _GATES[squash.target]


def _conv_arguments(conv: Node) -> tuple[Node, Optional[Node], int]:
    """Weight, bias and padding of a convolution without stride, dilation and groups; ``is_valid`` checks the weight."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = arguments(conv, *names, bias=None, stride=1, padding=0, dilation=1, groups=1)
    weight, padding = given["weight"], _one(given["padding"])
    half = value_of(weight).shape[-1] // 2
    require((_one(given["stride"]), _one(given["dilation"]), given["groups"]) == (1, 1, 1))
    return weight, given["bias"], half if padding == "same" else padding


def _is_circular_pad(pad: Any, half: int) -> bool:
    given = arguments(pad, "input", "pad", "mode", "value", mode="constant")
    return (tuple(given["pad"]), given["mode"]) == ((half, half), "circular")


def _pooled(pool: Node, axes: _Axes) -> _Axes:
    """The axes after a mean over whole dimensions."""
    rank, after = len(axes), value_of(pool)
    if pool.target in _MEANS:
        given = arguments(pool, "input", "dim", "keepdim", "axis", dim=None, axis=None)
        dims = given["dim"] if given["axis"] is None else given["axis"]
        dims = dims if isinstance(dims, (tuple, list)) else [dims]
        require(len(dims) > 0 and all(isinstance(d, int) for d in dims))
        means = {d % rank for d in dims}
    else:
        means = _pooled_dims(pool, rank)
    if after.dim() < rank:
        return [dims for d, dims in enumerate(axes) if d not in means]
    return [() if d in means else dims for d, dims in enumerate(axes)]


def _pooled_dims(pool: Node, rank: int) -> set[int]:
    """The dimensions that an average pool with a single window averages over."""
    count = _POOLS[pool.target]
    require(all(_same(size, 1) for size in value_of(pool).shape[-count:]))
    if pool.target in _ADAPTIVE_POOLS:
        return set(range(rank - count, rank))
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = arguments(pool, *names, padding=0, divisor_override=None)
    require(given["divisor_override"] is None and all(_same(p, 0) for p in _several(given["padding"], count)))
    require(all(map(_same, _several(given["kernel_size"], count), value_of(pool.args[0]).shape[-count:])))
    return set(range(rank - count, rank))


def _viewed(view: Node, axes: _Axes, sizes: Sequence[Any]) -> _Axes:
    """The axes after a call that only rearranges dimensions; ``sizes`` are those of x. NoMatch for any other."""
    before, after = value_of(view.args[0]), value_of(view)
    require((before.dtype, before.device) == (after.dtype, after.device))
    if view.target in _PERMUTES:
        return [axes[d] for d in _permutation(view, len(axes))]
    require(view.target is not operator.getitem or _is_basic(view.args[1]))
    left = [d for dims in axes for d in dims]
    grouped = []
    for size in after.shape:
        dims: tuple[int, ...] = ()
        elements: Any = 1
        while not _same(elements, size):
            require(len(left) > 0)
            dims += (left.pop(0),)
            elements = elements * sizes[dims[-1]]
        grouped.append(dims)
    require(not left)  # false for a slice of a part
    return grouped


def _permutation(view: Node, rank: int) -> Sequence[int]:
    """For each dimension of the result, its dimension before: the call permutes a probe with sizes 0, 1, 2, ..."""
    require(view.all_input_nodes == [view.args[0]])
    require(view.target is not getattr or view.args[1] in ("mT",))
    probe = torch.empty(tuple(range(rank)), device="meta")
    function = getattr(Tensor, view.target) if isinstance(view.target, str) else view.target
    return tuple(function(probe, *view.args[1:], **view.kwargs).shape)


def _is_basic(index: Any) -> bool:
    """Whether the index has only slices, integers, None and the ellipsis, which keep the order of the elements."""
    items = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is Ellipsis or type(item) in (slice, int) for item in items)


def value_of(node: Any) -> Tensor:
    """The tensor that Dynamo traced for a node. NoMatch if there is none."""
    value = traced(node)
    if not isinstance(value, Tensor):
        raise NoMatch
    return value


def _has_shape(node: Any, shape: tuple[Any, ...]) -> bool:
    found = value_of(node).shape
    return len(found) == len(shape) and all(map(_same, found, shape))


def _same(a: Any, b: Any) -> bool:
    """Whether sizes are equal for all values of dynamic sizes; adds no guard."""
    return a == b if isinstance(a, int) and isinstance(b, int) else str(a) == str(b)


def _one(value: Any) -> Any:
    """``value``, or the element of a sequence of one."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


def _several(value: Any, count: int) -> Sequence[Any]:
    """``count`` sizes from a sequence or a single size, which may be nodes."""
    value = traced(value)
    sizes = value if isinstance(value, (tuple, list)) else [value]
    sizes = sizes if len(sizes) == count else [*sizes] * count
    require(len(sizes) == count)
    return [traced(size) for size in sizes]


def traced(value: Any) -> Any:
    """The value that Dynamo traced for a node; any other value itself."""
    return value.meta.get("example_value") if isinstance(value, Node) else value


def require(condition: bool) -> None:
    if not condition:
        raise NoMatch
