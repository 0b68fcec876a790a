# SPDX-License-Identifier: MIT
"""Residual blocks: the addition and the ReLU that follow attention, done in the pass that rescales.

A block's forward is traced by torch.fx with its children as leaves, ``relu(attention(x) + shortcut)`` becomes one call,
and the result, as source text, becomes the block's forward. What does not fit is left alone, with the reason.
"""

import copy
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .functional import Activation
from .recognition import Unsupported
from .swap import Source, Swapped
from .trial import LeftAlone, copied, generators_kept, without_side_effects

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
    """A residual block whose attention adds the shortcut.

    Its own forward runs while a drop-path is active, and once a module that is no longer called, or in another way, was
    replaced, reverted or given hooks.
    """

    _eca_cuda_forward: Any
    _eca_cuda: tuple[tuple[str, str], ...]  # path and class name of those modules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for path, name in self._eca_cuda:
            module = self.get_submodule(path)
            if type(module).__name__ != name or _has_hooks(module) or _drops(module):
                return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


class Fusable(NamedTuple):
    """The arguments for ``swap``."""

    modules: tuple[tuple[str, str], ...]
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
        paths = [p for path in attention for p in _rewrite(graph, block, path)]
        graph.lint()
        code = graph.python_code("self")
        modules = tuple((path, type(block.get_submodule(path)).__name__) for path in paths)
        return Fusable(modules, Source.of(code.src.strip(), code.globals))
    except LeftAlone as reason:
        return Unsupported(str(reason))
    except Exception as error:  # whatever a forward that torch.fx cannot follow may raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return Unsupported(f"torch.fx cannot follow its forward: {first_line}")


class _Proxy(fx.Proxy):
    """Records ``y += x`` as what it is; torch.fx's own records ``y = y + x``, but aliases and dtypes differ."""

    @property  # type: ignore[misc]  # mypy: object's can be set
    def __class__(self) -> type:
        """``isinstance`` asks for it, and a proxy is no Tensor: a forward that asks would go another way than usual."""
        if sys._getframe(1).f_globals["__name__"].partition(".")[0] not in ("torch", "eca_cuda"):
            raise LeftAlone("its forward asks for the type of a value")
        return _Proxy


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


_OPERATORS_IN_PLACE = {
    f"__i{name}__": getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}
for _name, _operator in _OPERATORS_IN_PLACE.items():
    setattr(_Proxy, _name, _record(_operator))


class _Tracer(fx.Tracer):
    """Goes into nothing but the ``nn.Sequential`` that hold the attention."""

    def __init__(self, attention: list[str]) -> None:
        super().__init__()
        self.inside = {path.rpartition(".")[0] for path in attention}
        self.modes = _modes()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:  # a graph does not hold them
            raise LeftAlone("its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inside


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def _trace(block: nn.Module, attention: list[str]) -> fx.Graph:
    """The graph of the forward, if it is always the same and the forward does nothing else."""
    if "forward" in vars(block):
        raise LeftAlone("its forward was replaced on the instance")
    arguments = inspect.signature(type(block).forward).parameters.values()
    if any(a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise LeftAlone("its forward has optional arguments")
    traced = copy.copy(block)
    vars(traced).update(copied(vars(block)))
    traced.__class__ = type(type(block).__name__, (type(block),), {"training": property(_refuse_to_say)})
    with generators_kept(), without_side_effects(traced):
        return _Tracer(attention).trace(traced)


def _refuse_to_say(_: nn.Module) -> bool:
    raise LeftAlone("its forward reads self.training")


def _rewrite(graph: fx.Graph, block: nn.Module, path: str) -> list[str]:
    """Replaces the addition, and the ReLU, after the attention at ``path``.

    Returns the paths of the modules that are called in another way then, or not at all: the attention, what it is
    inside, the drop-paths and the ReLU.
    """
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
        raise LeftAlone(f"{path} is not called once with one argument")
    call = calls[0]
    x, skipped, end = call.args[0], [call], _only_user(call)
    _check_hooks(block, call)
    while _is_drop_path(block, end):
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
    nodes = list(graph.nodes)
    for node in nodes[nodes.index(call) : nodes.index(end)]:  # which will run before the attention
        if node in skipped:
            continue
        if node in x.users:
            raise LeftAlone(f"the input of {path} is used again before the addition")
        if _may_be_in_place(block, node):
            raise LeftAlone(f"{_describe(node)}, between {path} and what follows it, may change a value in place")
    with graph.inserting_before(end):
        layer = graph.get_attr(path)
        fused = graph.call_function(attend, (layer, x, shortcut, activation, in_place))
    end.replace_all_uses_with(fused)
    for node in reversed(skipped):
        graph.erase_node(node)
    paths = [path.rpartition(".")[0], *(str(node.target) for node in skipped if node.op == "call_module")]
    return [path for path in paths if path]


def _only_user(node: fx.Node) -> fx.Node:
    if len(node.users) != 1:
        raise LeftAlone(f"{_describe(node)} has {len(node.users)} users, expected one")
    return next(iter(node.users))


def _module(block: nn.Module, node: fx.Node) -> Optional[nn.Module]:
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _may_be_in_place(block: nn.Module, node: fx.Node) -> bool:
    module, name = _module(block, node), _describe(node)
    if module is not None:
        return any(getattr(m, "inplace", False) for m in module.modules())
    flags = [*node.args, node.kwargs.get("inplace"), "out" in node.kwargs]
    return node.target in _OPERATORS_IN_PLACE.values() or name.endswith("_") or any(flag is True for flag in flags)


def _is_drop_path(block: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` calls a drop-path, whose probability is known, on one argument."""
    module = _module(block, node)
    probability = getattr(module, _DROP_PATHS.get(type(module).__name__, ""), None)
    return isinstance(probability, (int, float)) and len(node.args) == 1 and not node.kwargs


def _drops(module: nn.Module) -> bool:
    probability = _DROP_PATHS.get(type(module).__name__)
    return probability is not None and module.training and bool(getattr(module, probability))


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op != "call_module" and node.target in _RELU)


def _check_hooks(block: nn.Module, node: fx.Node) -> None:
    module = _module(block, node)
    if module is not None and _has_hooks(module):
        raise LeftAlone(f"{node.target} has hooks that see a value which the fused pass does not make")


def _describe(node: fx.Node) -> str:
    return node.name if node.op == "output" else str(getattr(node.target, "__name__", node.target))
