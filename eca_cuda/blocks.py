# SPDX-License-Identifier: MIT
"""Residual blocks: the addition and the ReLU that follow attention, done in the pass that rescales.

A block's forward is traced by torch.fx with its children as leaves, ``relu(attention(x) + shortcut)`` becomes one call,
and the result, as source text, becomes the block's forward. What does not fit is left alone, with the reason.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .functional import Activation
from .recognition import Unsupported
from .swap import Source, Swapped

_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}
_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_DROP_PATHS = {"DropPath": "drop_prob", "StochasticDepth": "p"}  # class name -> its probability


def attend(layer: Any, x: Tensor, residual: Tensor, activation: Activation, in_place: bool) -> Tensor:
    """``activation(layer(x) + residual)``, in one pass unless the addition broadcasts or promotes.

    torch.fx traces without shapes and dtypes: it gets the one pass.
    """
    y: Tensor
    if isinstance(x, fx.Proxy) or (residual.dtype == x.dtype and residual.shape == x.shape):
        y = layer(x, residual, activation)
        return y
    y = layer(x)
    y = y.add_(residual) if in_place else y + residual
    return torch.relu(y) if activation else y


class FusedBlock(Swapped):
    """A residual block whose attention adds the shortcut. While a drop-path of it is active, its own forward runs."""

    _eca_cuda_forward: Any
    _eca_cuda: tuple[tuple[str, str], ...]  # path and attribute of the probability, of each drop-path in between

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for path, probability in self._eca_cuda:
            drop = self.get_submodule(path)
            if drop.training and getattr(drop, probability):
                return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


class Fusable(NamedTuple):
    """The arguments for ``swap``."""

    drop_paths: tuple[tuple[str, str], ...]
    source: Source


def attention_of(block: nn.Module, is_attention: Any) -> list[str]:
    """Paths of the attention that ``block`` calls itself or through an ``nn.Sequential``."""
    found = []
    for name, child in () if _is_transparent(block) else block.named_children():
        if is_attention(child):
            found.append(name)
        elif _is_transparent(child):
            found += [f"{name}.{i}" for i, m in child.named_children() if is_attention(m)]
    return found


def _is_transparent(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and not _has_hooks(module)


def _has_hooks(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def fuse(block: nn.Module, attention: list[str]) -> Union[Fusable, Unsupported]:
    """The forward of ``block`` with the shortcut added by the attention at these paths, or why there is none."""
    try:
        graph = _trace(block, attention)
        drop_paths = [drop for path in attention for drop in _rewrite(graph, block, path)]
        graph.lint()
        code = graph.python_code("self")
        return Fusable(tuple(drop_paths), Source.of(code.src.strip(), code.globals))
    except _LeftAlone as reason:
        return Unsupported(str(reason))
    except Exception as error:  # whatever a forward that torch.fx cannot follow may raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return Unsupported(f"torch.fx cannot follow its forward: {first_line}")


class _LeftAlone(Exception):
    """The reason."""


class _Proxy(fx.Proxy):
    """Records ``y += x`` as what it is; torch.fx's own records ``y = y + x``, but aliases and dtypes differ."""


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(_Proxy, f"__i{_name}__", _record(getattr(operator, f"i{_name}")))


class _Tracer(fx.Tracer):
    """Goes into nothing but the ``nn.Sequential`` that hold the attention."""

    def __init__(self, attention: list[str]) -> None:
        super().__init__()
        self.inside = {path.rpartition(".")[0] for path in attention}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inside


def _trace(block: nn.Module, attention: list[str]) -> fx.Graph:
    """The graph of the forward, if it is the same in training and in evaluation and changes nothing else."""
    if "forward" in vars(block):
        raise _LeftAlone("its forward was replaced on the instance")
    graphs = []
    for training in (True, False):
        shallow = copy.copy(block)
        shallow.training = training
        before = dict(vars(shallow))
        graphs.append(_Tracer(attention).trace(shallow))
        if vars(shallow).keys() != before.keys() or any(vars(shallow)[key] is not before[key] for key in before):
            raise _LeftAlone("its forward sets attributes")
    if str(graphs[0]) != str(graphs[1]):
        raise _LeftAlone("its forward reads self.training")
    return graphs[0]


def _rewrite(graph: fx.Graph, block: nn.Module, path: str) -> list[tuple[str, str]]:
    """Replaces the addition, and the ReLU, after the attention at ``path``; returns the drop-paths in between."""
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
        raise _LeftAlone(f"{path} is not called once with one argument")
    call, drop_paths = calls[0], []
    x, skipped, end = call.args[0], [call], _only_user(call)
    _check_hooks(block, call)
    while probability := _drop_path(block, end):
        _check_hooks(block, end)
        drop_paths.append((str(end.target), probability))
        skipped.append(end)
        end = _only_user(end)
    in_place = end.target in _ADD_IN_PLACE
    operands = list(end.args)
    if not (in_place or end.target in _ADD) or len(operands) != 2 or end.kwargs:
        raise _LeftAlone(f"the output of {path} goes to {_describe(end)}, not to an addition")
    shortcut = operands[1 - operands.index(skipped[-1])]
    if not isinstance(shortcut, fx.Node) or shortcut is skipped[-1]:
        raise _LeftAlone(f"the output of {path} is not added to another tensor")
    if in_place and operands[0] is shortcut:
        raise _LeftAlone(f"the output of {path} is added in place to the shortcut")
    skipped.append(end)
    activation = None
    if len(end.users) == 1 and _is_relu(block, _only_user(end)):
        activation, end = "relu", _only_user(end)
        _check_hooks(block, end)
        skipped.append(end)
    order = {node: i for i, node in enumerate(graph.nodes)}
    if any(order[call] < order[user] < order[end] and user not in skipped for user in x.users):
        raise _LeftAlone(f"the input of {path} is used again before the addition")
    with graph.inserting_before(end):
        layer = graph.get_attr(path)
        fused = graph.call_function(attend, (layer, x, shortcut, activation, in_place))
    end.replace_all_uses_with(fused)
    for node in reversed(skipped):
        graph.erase_node(node)
    return drop_paths


def _only_user(node: fx.Node) -> fx.Node:
    if len(node.users) != 1:
        raise _LeftAlone(f"{_describe(node)} has {len(node.users)} users, expected one")
    return next(iter(node.users))


def _module(block: nn.Module, node: fx.Node) -> Optional[nn.Module]:
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _drop_path(block: nn.Module, node: fx.Node) -> Optional[str]:
    """The attribute that holds the probability, if ``node`` calls a drop-path on one argument."""
    module = _module(block, node)
    probability = _DROP_PATHS.get(type(module).__name__)
    if probability is None or not isinstance(getattr(module, probability, None), (int, float)):
        return None
    return probability if len(node.args) == 1 and not node.kwargs else None


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op != "call_module" and node.target in _RELU)


def _check_hooks(block: nn.Module, node: fx.Node) -> None:
    module = _module(block, node)
    if module is not None and _has_hooks(module):
        raise _LeftAlone(f"{node.target} has hooks that see a value which the fused pass does not make")


def _describe(node: fx.Node) -> str:
    return node.name if node.op == "output" else str(getattr(node.target, "__name__", node.target))
