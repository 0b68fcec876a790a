# SPDX-License-Identifier: MIT
"""Rewrites the graph of a block: batch norm, attention, addition and ReLU become one call.

In the graph of the block's forward (``block_graph``), ``relu(attention(norm(x)) + shortcut)`` or a part of it is
replaced by ``attend``. If that is not possible, LeftAlone is raised with the reason.
"""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..functional import Activation
from ..submodules import refreshed
from ..variants.eca import EfficientChannelAttention
from . import fused_norm
from .basis import has_hooks
from .block_graph import OPERATORS_IN_PLACE, is_known, may_change_its_input
from .fused_attention import FusedAttention
from .recipe import Recipe
from .recognition import Answer
from .swap import own_class
from .trial import LeftAlone

_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}
_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_DROP_PATHS = {  # class -> the attribute with its probability; an inactive drop-path returns its input
    ("timm.layers.drop", "DropPath"): "drop_prob",
    ("timm.models.layers.drop", "DropPath"): "drop_prob",
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): "p",
}


def attend(
    layer: Any, x: Tensor, residual: Tensor, activation: Activation, in_place: bool, norm: Optional[nn.Module] = None
) -> Tensor:
    """``activation(layer(norm(x)) + residual)``, in one pass unless the addition broadcasts or promotes.

    A proxy of torch.fx has no shape or dtype and is given the one pass. ``residual`` may be a number.
    """
    is_plain = isinstance(x, Tensor) and isinstance(residual, Tensor)
    if isinstance(residual, fx.Proxy) or (is_plain and residual.dtype == x.dtype and residual.shape == x.shape):
        return _call(layer, x, residual, activation, norm)
    y = _call(layer, x, None, None, norm)
    y = y.add_(residual) if in_place else y + residual
    return torch.relu(y) if activation else y


def attend_alone(layer: Any, x: Tensor, norm: nn.Module) -> Tensor:
    """``layer(norm(x))``."""
    return _call(layer, x, None, None, norm)


def _call(
    layer: Any, x: Tensor, residual: Optional[Tensor], activation: Activation, norm: Optional[nn.Module]
) -> Tensor:
    y: Optional[Tensor]
    if norm is not None and isinstance(x, fx.Proxy):  # so a trace contains the norm with its own mode
        x, norm = norm(x), None
    if isinstance(layer, FusedAttention):
        y = layer(x, eca_cuda_residual=residual, eca_cuda_activation=activation, eca_cuda_norm=norm)
        return y
    if norm is not None:
        if layer._is_plain():
            conv = refreshed(layer.conv1)
            options = {"padding_mode": layer.padding_mode, "gate": layer.gate_function}
            options |= {"residual": residual, "activation": activation}
            y = fused_norm.batch_norm_eca(norm, x, (conv.weight, conv.bias), options)
            if y is not None:
                return y
        x = norm(x)
    y = layer(x, residual, activation)
    return y


def refuses_norm(path: str, layer: nn.Module, answer: Answer) -> Optional[str]:
    """Why the attention at ``path`` cannot be fused with a batch norm."""
    if isinstance(answer, Recipe):
        if answer.variant != "eca":
            return f"{path} computes {answer.variant}, and batch norm is fused with eca only"
        return None if answer.takes_norm else f"{path} takes x with the channels as the last dimension"
    if type(layer) is not EfficientChannelAttention:
        return f"{path} is a {own_class(layer).__name__}, and batch norm is fused with eca only"
    return None if layer.channels_dim == 1 else f"{path} takes x with the channels as the last dimension"


class Rewritten(NamedTuple):
    """Paths of modules in a rewritten graph."""

    called: list[str]  # differently, or no longer: the attention, the modules around it, drop-paths, ReLU, norm
    earlier: list[str]  # that now run before all of these
    norm: Optional[str]


def rewrite(graph: fx.Graph, block: nn.Module, path: str, residual: bool, norm: bool) -> Rewritten:
    """Replace the attention at ``path`` with the addition and ReLU after it, the batch norm before it, or both."""
    calls = _calls_of(graph, path)
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
        raise LeftAlone(f"{path} is not called once with one argument")
    call = first = calls[0]
    u: Any = call.args[0]
    skipped, end = [call], call
    _check_hooks(block, call)
    epilogue: tuple[Any, ...] = ()
    if residual:
        end, epilogue = _tail(block, path, skipped)
    if norm:
        first = _norm_before(graph, block, path, u)
    nodes, earlier = list(graph.nodes), []
    for node in nodes[nodes.index(first) : nodes.index(end)]:  # these will run before the fused call
        if node is first or node in skipped:
            continue
        if node in u.users:
            raise LeftAlone(f"the input of {path} is used again before the addition")
        if _may_be_in_place(block, node):
            between = path if nodes.index(node) > nodes.index(call) else _describe(first)
            raise LeftAlone(f"{_describe(node)}, between {between} and what follows it, may change a value in place")
        if (module := _module(block, node)) is not None:
            earlier += [f"{node.target}.{inner}" if inner else str(node.target) for inner, _ in module.named_modules()]
    with graph.inserting_before(end):
        inputs = (graph.get_attr(path), first.args[0], *epilogue)
        if norm:
            inputs = (*inputs, graph.get_attr(str(first.target)))
            skipped.insert(0, first)
        fused = graph.call_function(attend if residual else attend_alone, inputs)
    end.replace_all_uses_with(fused)
    for node in reversed(skipped):
        graph.erase_node(node)
    called = [*around(path), *(str(node.target) for node in skipped if node.op == "call_module")]
    return Rewritten(called, earlier, str(first.target) if norm else None)


def _tail(block: nn.Module, path: str, skipped: list[fx.Node]) -> tuple[fx.Node, tuple[Any, ...]]:
    """The last node, and (shortcut, activation, in_place) of the addition; appends replaced nodes to ``skipped``."""
    end = _only_user(skipped[-1])
    while is_drop_path(block, end):
        _check_hooks(block, end)
        skipped.append(end)
        end = _only_user(end)
    in_place = end.target in _ADD_IN_PLACE
    operands = list(end.args)
    if not (in_place or end.target in _ADD) or len(operands) != 2 or end.kwargs:
        raise LeftAlone(f"the output of {path} goes to {_describe(end)}, not to an addition")
    shortcut = operands[1 - operands.index(skipped[-1])]
    if not isinstance(shortcut, fx.Node) or shortcut is skipped[-1]:
        raise LeftAlone(f"the output of {path} is not added to another tensor")
    if in_place and operands[0] is shortcut:
        raise LeftAlone(f"the output of {path} is added in place to the shortcut")
    skipped.append(end)
    activation = None
    if len(end.users) == 1 and _is_relu(block, _only_user(end)):
        activation, end = "relu", _only_user(end)
        _check_hooks(block, end)
        skipped.append(end)
    return end, (shortcut, activation, in_place)


def _norm_before(graph: fx.Graph, block: nn.Module, path: str, u: Any) -> fx.Node:
    """``u``, the input of the attention, if it is a call of a batch norm whose result only the attention uses."""
    if not isinstance(u, fx.Node) or u.op != "call_module":
        made = _describe(u) if isinstance(u, fx.Node) else repr(u)
        raise LeftAlone(f"the input of {path} comes from {made}, not from a batch norm")
    name, norm = str(u.target), _module(block, u)
    assert norm is not None
    if type(norm) not in fused_norm.KINDS:
        kind = own_class(norm).__name__
        article = "an" if kind[0] in "AEIOU" else "a"
        raise LeftAlone(
            f"the input of {path} comes from {name}, {article} {kind}, not from an nn.BatchNorm1d, 2d or 3d"
        )
    if len(u.args) != 1 or u.kwargs or not isinstance(u.args[0], fx.Node):
        raise LeftAlone(f"{name} is not called with one argument")
    if len(_calls_of(graph, name)) != 1:
        raise LeftAlone(f"{name} is called more than once")
    paths = [other for other, m in block.named_modules(remove_duplicate=False) if m is norm]
    if len(paths) != 1:
        raise LeftAlone(f"{' and '.join(paths)} are the same module")
    if len(u.users) != 1:
        raise LeftAlone(f"the output of {name} has {len(u.users)} users, expected one")
    if "forward" in vars(norm):
        raise LeftAlone(f"the forward of {name} was replaced on the instance")
    if has_hooks(norm):
        raise LeftAlone(f"{name} has hooks")
    return u


def sequentials_before(graph: fx.Graph, block: nn.Module, attention: Iterable[str]) -> set[str]:
    """The path of each ``nn.Sequential`` that ends in a batch norm and whose output is the input of attention."""
    found = set()
    for call in (call for path in attention for call in _calls_of(graph, path)):
        u = call.args[0] if call.args else None
        module: Any = _module(block, u) if isinstance(u, fx.Node) else None
        last = module
        while isinstance(last, nn.Sequential) and is_transparent(last) and len(last):
            last = last[-1]
        if isinstance(u, fx.Node) and type(last) in fused_norm.KINDS and last is not module:
            found.add(str(u.target))
    return found


def around(path: str) -> list[str]:
    """The paths of the modules around the module at ``path``."""
    names = path.split(".")
    return [".".join(names[:i]) for i in range(1, len(names))]


def is_transparent(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and not has_hooks(module)


def _calls_of(graph: fx.Graph, path: str) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module" and node.target == path]


def _only_user(node: fx.Node) -> fx.Node:
    if len(node.users) != 1:
        raise LeftAlone(f"{_describe(node)} has {len(node.users)} users, expected one")
    return next(iter(node.users))


def _module(block: nn.Module, node: fx.Node) -> Optional[nn.Module]:
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _may_be_in_place(block: nn.Module, node: fx.Node) -> bool:
    module, name = _module(block, node), _describe(node)
    if module is not None:
        return may_change_its_input(module)
    flags = [*node.args, node.kwargs.get("inplace"), "out" in node.kwargs]
    is_operation = node.op != "call_function" or is_known(getattr(node.target, "__module__", None) or "torch")
    in_place = node.target in OPERATORS_IN_PLACE.values() or name.endswith("_") or any(flag is True for flag in flags)
    return in_place or not is_operation


def is_drop_path(block: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` calls a drop-path of timm or torchvision on one argument."""
    module = _module(block, node)
    probability = getattr(module, _probability_of(module) or "", None)
    is_called_so = isinstance(probability, (int, float)) and len(node.args) == 1 and not node.kwargs
    return is_called_so and type(module).forward.__module__ == type(module).__module__  # type: ignore[union-attr]


def _probability_of(module: Any) -> Optional[str]:
    return _DROP_PATHS.get((type(module).__module__, type(module).__name__))


def drops(module: nn.Module) -> bool:
    probability = _probability_of(module)
    return probability is not None and module.training and bool(getattr(module, probability))


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op != "call_module" and node.target in _RELU)


def _check_hooks(block: nn.Module, node: fx.Node) -> None:
    module = _module(block, node)
    if module is not None and has_hooks(module):
        raise LeftAlone(f"{node.target} has hooks, but the fused call does not compute the values that they receive")


def _describe(node: fx.Node) -> str:
    return node.name if node.op == "output" else str(getattr(node.target, "__name__", node.target))
