# SPDX-License-Identifier: MIT
"""Residual blocks: the addition and the ReLU that follow attention, done in the pass that rescales.

In the graph of a block's forward (``block_graph``) ``relu(attention(x) + shortcut)`` becomes one call, and the result,
as source text, becomes the block's forward. What does not fit is left alone, with the reason.
"""

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .basis import Basis, has_hooks, is_disturbed
from .block_graph import OPERATORS_IN_PLACE, is_known, may_change_its_input, traced
from .functional import Activation
from .fused_attention import FusedAttention
from .places import Place
from .recognition import Unsupported
from .swap import Source, Swapped, own_class
from .trial import LeftAlone
from .watch import Conversion

_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}
_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_LISTS = (nn.ModuleList, nn.ModuleDict)  # which have no forward
_DROP_PATHS = {  # which return what they are given where they drop nothing: class -> its probability
    ("timm.layers.drop", "DropPath"): "drop_prob",
    ("timm.models.layers.drop", "DropPath"): "drop_prob",
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): "p",
}


def attend(layer: Any, x: Tensor, residual: Tensor, activation: Activation, in_place: bool) -> Tensor:
    """``activation(layer(x) + residual)``, in one pass unless the addition broadcasts or promotes.

    torch.fx traces without shapes and dtypes: it gets the one pass. ``residual`` may turn out to be a number.
    """
    y: Tensor
    is_plain = isinstance(x, Tensor) and isinstance(residual, Tensor)
    if isinstance(residual, fx.Proxy) or (is_plain and residual.dtype == x.dtype and residual.shape == x.shape):
        if isinstance(layer, FusedAttention):
            y = layer(x, eca_cuda_residual=residual, eca_cuda_activation=activation)
        else:
            y = layer(x, residual, activation)
        return y
    y = layer(x)
    y = y.add_(residual) if in_place else y + residual
    return torch.relu(y) if activation else y


class Fusable(NamedTuple):
    """The forward of a block with the shortcut fused, and what that rests on."""

    # Those that are no longer called, or in another way: path, class, and whether it is converted.
    modules: tuple[tuple[str, type, bool], ...]
    weights: tuple[tuple[str, str], ...]  # parameters that the forward itself read: path of the module, name
    basis: Basis
    source: Source


class FusedBlock(Swapped):
    """A residual block whose attention adds the shortcut.

    Its own forward runs while a drop-path is active, for arguments that are no tensors, once a module that is no longer
    called, or in another way, was replaced, reverted or given hooks, and while an attribute that it read is another.
    """

    if TYPE_CHECKING:
        _eca_cuda_forward: Any
        _eca_cuda: Conversion[Fusable]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = self._eca_cuda.found
        for value in (*args, *kwargs.values()):  # torch.fx traced tensors
            if not isinstance(value, (Tensor, fx.Proxy)):
                return super().forward(*args, **kwargs)
        for path, kind, converted in found.modules:
            module = _submodule(self, path)
            if module is None or not _is(module, kind, converted) or is_disturbed(module) or _drops(module):
                return super().forward(*args, **kwargs)
        if not self._eca_cuda.holds_for(self):
            return super().forward(*args, **kwargs)
        for path, name in found.weights:
            if getattr(_submodule(self, path), name, None) is None:
                return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


def change_of(block: FusedBlock) -> Optional[str]:
    """What is not as it was when the block was fused; a drop-path does not count, which comes and goes."""
    for path, kind, converted in block._eca_cuda.found.modules:
        module = _submodule(block, path)
        if module is None or not _is(module, kind, converted):
            return f"{path} was replaced or reverted"
        if is_disturbed(module):
            return f"{path} has hooks, or a forward of its own"
    for path, name in block._eca_cuda.found.weights:
        if getattr(_submodule(block, path), name, None) is None:
            return f"the parameter {name} is gone"
    return block._eca_cuda.change(block)


def _submodule(block: nn.Module, path: str) -> Optional[nn.Module]:
    try:
        return block.get_submodule(path)
    except AttributeError:  # gone, or a function now
        return None


def _is(module: nn.Module, kind: type, converted: bool) -> bool:
    return isinstance(module, FusedAttention) == converted and own_class(module) is kind


def attention_of(block: nn.Module, is_attention: Any) -> list[str]:
    """Paths of the attention that ``block`` calls itself, through an ``nn.Sequential`` or from a list of modules."""
    if _is_transparent(block) or type(block) in _LISTS:
        return []
    return _attention_in(block, is_attention)


def _attention_in(module: nn.Module, is_attention: Any) -> list[str]:
    found = []
    for name, child in module.named_children():
        if is_attention(child):
            found.append(name)
        elif _is_transparent(child) or type(child) in _LISTS:
            found += [f"{name}.{path}" for path in _attention_in(child, is_attention)]
    return found


def _is_transparent(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and not has_hooks(module)


def fuse(block: nn.Module, attention: list[str]) -> Union[Fusable, Unsupported]:
    """The forward of ``block`` with the shortcut added by the attention at these paths, or why there is none."""
    if not attention:
        return Unsupported("it calls no attention that could be fused")
    try:
        graph, notes = traced(block, {outer for path in attention for outer in _around(path)})
        for path in notes.paths().intersection(attention):
            raise LeftAlone(f"its forward reads what is in {path}")
        rewritten = [_rewrite(graph, block, path) for path in attention]
        graph.lint()
        code = graph.python_code("self")
        named = [(path, block.get_submodule(path)) for paths, _ in rewritten for path in paths]
        modules = tuple((path, own_class(m), isinstance(m, FusedAttention)) for path, m in named)
        functions = {Place(kind, "forward") for _, kind, converted in modules if not converted}
        earlier = {path for _, paths in rewritten for path in paths}
        for path in earlier:
            if hasattr(block.get_submodule(path), "inplace"):
                notes.names.setdefault(path, set()).add("inplace")
        basis = notes.basis(block, sorted(notes.paths() | earlier))
        basis = replace(basis, functions=tuple({*basis.functions, *functions}))
        return Fusable(modules, tuple(sorted(notes.weights)), basis, Source.of(code.src.strip(), code.globals))
    except LeftAlone as reason:
        return Unsupported(str(reason))
    except Exception as error:  # whatever a forward that torch.fx cannot follow may raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return Unsupported(f"torch.fx cannot follow its forward: {first_line}")


def _rewrite(graph: fx.Graph, block: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Replaces the addition, and the ReLU, after the attention at ``path``.

    Returns the paths of the modules that are called in another way then, or not at all (the attention, what it is
    inside, the drop-paths and the ReLU), and those of the modules that run before the attention then.
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
    nodes, earlier = list(graph.nodes), []
    for node in nodes[nodes.index(call) : nodes.index(end)]:  # which will run before the attention
        if node in skipped:
            continue
        if node in x.users:
            raise LeftAlone(f"the input of {path} is used again before the addition")
        if _may_be_in_place(block, node):
            raise LeftAlone(f"{_describe(node)}, between {path} and what follows it, may change a value in place")
        if (module := _module(block, node)) is not None:
            earlier += [f"{node.target}.{inner}" if inner else str(node.target) for inner, _ in module.named_modules()]
    with graph.inserting_before(end):
        layer = graph.get_attr(path)
        fused = graph.call_function(attend, (layer, x, shortcut, activation, in_place))
    end.replace_all_uses_with(fused)
    for node in reversed(skipped):
        graph.erase_node(node)
    return [*_around(path), *(str(node.target) for node in skipped if node.op == "call_module")], earlier


def _around(path: str) -> list[str]:
    """The paths of what the module at ``path`` is in."""
    names = path.split(".")
    return [".".join(names[:i]) for i in range(1, len(names))]


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


def _is_drop_path(block: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` calls a drop-path of timm or torchvision on one argument."""
    module = _module(block, node)
    probability = getattr(module, _probability_of(module) or "", None)
    is_called_so = isinstance(probability, (int, float)) and len(node.args) == 1 and not node.kwargs
    return is_called_so and type(module).forward.__module__ == type(module).__module__  # type: ignore[union-attr]


def _probability_of(module: Any) -> Optional[str]:
    return _DROP_PATHS.get((type(module).__module__, type(module).__name__))


def _drops(module: nn.Module) -> bool:
    probability = _probability_of(module)
    return probability is not None and module.training and bool(getattr(module, probability))


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op != "call_module" and node.target in _RELU)


def _check_hooks(block: nn.Module, node: fx.Node) -> None:
    module = _module(block, node)
    if module is not None and has_hooks(module):
        raise LeftAlone(f"{node.target} has hooks that see a value which the fused pass does not make")


def _describe(node: fx.Node) -> str:
    return node.name if node.op == "output" else str(getattr(node.target, "__name__", node.target))
