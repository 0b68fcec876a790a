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
from dataclasses import replace
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .basis import Basis, has_hooks, is_disturbed
from .functional import Activation
from .fused_attention import FusedAttention
from .notes import Notes
from .places import Place
from .recognition import Unsupported
from .swap import Source, Swapped, own_class
from .trial import LeftAlone, copied, isolated, without_side_effects
from .watch import Conversion

_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}
_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_LISTS = (nn.ModuleList, nn.ModuleDict)  # which have no forward
_DROP_PATHS = {"DropPath": "drop_prob", "StochasticDepth": "p"}  # class name -> its probability


def attend(layer: Any, x: Tensor, residual: Tensor, activation: Activation, in_place: bool) -> Tensor:
    """``activation(layer(x) + residual)``, in one pass unless the addition broadcasts or promotes.

    torch.fx traces without shapes and dtypes: it gets the one pass.
    """
    y: Tensor
    if isinstance(x, fx.Proxy) or (residual.dtype == x.dtype and residual.shape == x.shape):
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
    basis: Basis
    source: Source


class FusedBlock(Swapped):
    """A residual block whose attention adds the shortcut.

    Its own forward runs while a drop-path is active, once a module that is no longer called, or in another way, was
    replaced, reverted or given hooks, and while an attribute that it read is another.
    """

    _eca_cuda_forward: Any
    _eca_cuda: Conversion[Fusable]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for path, kind, converted in self._eca_cuda.found.modules:
            module = self.get_submodule(path)
            if not _is(module, kind, converted) or is_disturbed(module) or _drops(module):
                return super().forward(*args, **kwargs)
        if not self._eca_cuda.holds_for(self):
            return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


def change_of(block: FusedBlock) -> Optional[str]:
    """What is not as it was when the block was fused; a drop-path does not count, which comes and goes."""
    for path, kind, converted in block._eca_cuda.found.modules:
        module = block.get_submodule(path)
        if not _is(module, kind, converted):
            return f"{path} was replaced or reverted"
        if is_disturbed(module):
            return f"{path} has hooks, or a forward of its own"
    return block._eca_cuda.change(block)


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
    try:
        graph, basis = _trace(block, attention)
        paths = [p for path in attention for p in _rewrite(graph, block, path)]
        graph.lint()
        code = graph.python_code("self")
        modules = tuple((path, own_class(m), isinstance(m, FusedAttention)) for path, m in _named(block, paths))
        functions = {Place(kind, "forward") for _, kind, converted in modules if not converted}
        basis = replace(basis, functions=tuple({*basis.functions, *functions}))
        return Fusable(modules, basis, Source.of(code.src.strip(), code.globals))
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
        self.inside = {outer for path in attention for outer in _around(path)}
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


def _named(block: nn.Module, paths: list[str]) -> list[tuple[str, nn.Module]]:
    return [(path, block.get_submodule(path)) for path in paths]


def _trace(block: nn.Module, attention: list[str]) -> tuple[fx.Graph, Basis]:
    """The graph of the forward, if it is always the same and the forward does nothing else."""
    if "forward" in vars(block):
        raise LeftAlone("its forward was replaced on the instance")
    arguments = inspect.signature(type(block).forward).parameters.values()
    if any(a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise LeftAlone("its forward has optional arguments")
    notes = Notes(block, may_ask_for_types=False)
    traced = _shadow(block, notes)
    with isolated(), without_side_effects(traced), notes.taken():
        graph = _Tracer(attention).trace(traced)
    if notes.objection:
        raise LeftAlone(notes.objection)
    calls = {"forward"}  # which are in the graph
    inside = [(path, m) for path, m in block.named_modules() if path]
    read = [path for path, m in inside if notes.names.get(path, calls) != calls or type(m) in _LISTS]
    return graph, notes.basis(block, ["", *read])


def _shadow(block: nn.Module, notes: Notes) -> nn.Module:
    """A copy whose modules, which will not run, and itself note what is read of them."""
    shadows: dict[int, nn.Module] = {}

    def shadow(m: nn.Module, path: str) -> nn.Module:
        if id(m) not in shadows:
            made = shadows[id(m)] = object.__new__(type(m))
            object.__setattr__(made, "__dict__", copied(vars(m)) if m is block else dict(vars(m)))
            children = m._modules.items()
            made._modules = {n: c and shadow(c, f"{path}.{n}" if path else n) for n, c in children}
            notes.take(made, path, **({} if path else {"training": property(_refuse_to_say)}))
        return shadows[id(m)]

    return shadow(block, "")


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
    paths = [*_around(path), *(str(node.target) for node in skipped if node.op == "call_module")]
    return paths


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
        return any(getattr(m, "inplace", False) for m in module.modules())
    flags = [*node.args, node.kwargs.get("inplace"), "out" in node.kwargs]
    return node.target in _OPERATORS_IN_PLACE.values() or name.endswith("_") or any(flag is True for flag in flags)


def _is_drop_path(block: nn.Module, node: fx.Node) -> bool:
    """Whether ``node`` calls a drop-path, whose probability is known, on one argument."""
    module = _module(block, node)
    probability = getattr(module, _DROP_PATHS.get(type(module).__name__, ""), None)
    is_called_so = isinstance(probability, (int, float)) and len(node.args) == 1 and not node.kwargs
    return is_called_so and module is not None and _passes(module)


def _passes(drop_path: nn.Module) -> bool:
    """Whether it returns what it is given while it is not active."""
    off = copy.deepcopy(drop_path).eval()
    x = torch.arange(1.0, 25.0).view(2, 3, 2, 2)
    with torch.no_grad():
        return torch.equal(off(x.clone()), x)


def _drops(module: nn.Module) -> bool:
    probability = _DROP_PATHS.get(type(module).__name__)
    return probability is not None and module.training and bool(getattr(module, probability))


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op != "call_module" and node.target in _RELU)


def _check_hooks(block: nn.Module, node: fx.Node) -> None:
    module = _module(block, node)
    if module is not None and has_hooks(module):
        raise LeftAlone(f"{node.target} has hooks that see a value which the fused pass does not make")


def _describe(node: fx.Node) -> str:
    return node.name if node.op == "output" else str(getattr(node.target, "__name__", node.target))
