# SPDX-License-Identifier: MIT
"""The torch.fx graph of a block's forward, if that graph describes the forward completely.

The block's children are leaves. Anything that torch.fx does not record is a reason to leave the block alone: modes of
torch, tests with ``is``, values that the forward changes.
"""

import dis
import inspect
import operator
import sys
import types
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import fx, nn

from .basis import has_modified_call
from .notes import Notes
from .places import WRAPPED, function_of
from .replica import lists_of
from .swap import STATE, own_class
from .trial import PACKAGE, LeftAlone, copied, is_user_code, isolated, under_autocast, without_side_effects


class BlockNotes(Notes):
    """Also notes the children and parameters that the forward takes from modules."""

    tracer: "_Tracer"

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, may_ask_for_types=False)
        self.containers = {""}  # paths of modules whose children the forward takes
        self.weights: set[tuple[str, str]] = set()  # path of a module, name of its parameter

    def note(self, module: nn.Module, path: str, name: str, value: Any, holds_weights: bool) -> None:
        if name == "forward" and is_user_code(sys._getframe(2)):  # the forward calls module.forward(), not module()
            self.containers.add(path)
        super().note(module, path, name, value, holds_weights)

    def fetched(self, path: str, name: str, value: Any) -> Any:
        if isinstance(value, nn.Module):
            self.containers.add(path)
        if not isinstance(value, nn.Parameter):
            return super().fetched(path, name, value)
        self.weights.add((path, name))  # by name: two names of one parameter may be separated later
        return self.tracer.create_proxy("get_attr", f"{path}.{name}" if path else name, (), {})

    def paths(self) -> set[str]:
        """The paths of modules that the forward does more with than call them."""
        return self.containers | {path for path, names in self.names.items() if names != {"forward"}}

    def refuse_unsafe_code(self) -> None:
        """Raises LeftAlone if the functions that ran do what torch.fx does not record."""
        read = self.code.codes
        for code in read:
            if what := _unsafe_in(code):
                raise LeftAlone(f"its forward {what}")
        for kind in self.code.kinds:
            for value in vars(kind).values():
                function, unread = function_of(value), []
                while callable(function) and hasattr(function, WRAPPED):
                    unread += [] if getattr(function, "__code__", None) in read else [function]
                    function = getattr(function, WRAPPED)
                if unread and getattr(function, "__code__", None) in read:
                    raise LeftAlone("its forward, or a method that it calls, has a decorator from another package")


def _unsafe_in(code: types.CodeType) -> Optional[str]:
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    names = [step.opname for step in steps]
    for i, name in enumerate(names):
        if name == "IS_OP" and names[i - 1] != "LOAD_CONST":
            return "tests whether two values are the same object"
        if name == "IS_OP" or name.endswith(("_IF_NONE", "_IF_NOT_NONE")):
            last = i - 1 - (name == "IS_OP")
            first = last
            while first > 0 and names[first] == "LOAD_ATTR":
                first -= 1
            loaded = steps[first].argval  # Python 3.13 loads two names in one step
            owner = loaded[-1] if isinstance(loaded, tuple) else loaded
            if first == last or not ("LOAD_FAST" in names[first] or names[first] == "LOAD_DEREF") or owner != "self":
                return "tests whether something other than an attribute of self is None, True or False"
    return None


class _Proxy(fx.Proxy):
    """Records ``y += x`` as such; torch.fx records ``y = y + x``, which differs in aliases and dtypes."""

    @property  # type: ignore[misc]  # mypy: object's can be set
    def __class__(self) -> type:
        """Refuses ``isinstance`` in a forward: a proxy is not a Tensor, so the forward would take another branch."""
        if is_user_code(sys._getframe(1)):
            raise LeftAlone("its forward checks the type of a value")
        return _Proxy


def _refuse_in_user_code(name: str) -> Callable[..., Any]:
    def method(self: _Proxy, *args: Any) -> Any:
        if is_user_code(sys._getframe(1)):  # to look a size up in a dict, for example
            raise LeftAlone("its forward hashes or prints a value")
        return getattr(object, name)(self, *args)

    return method


for _name in ("__hash__", "__format__", "__str__", "__repr__"):
    setattr(_Proxy, _name, _refuse_in_user_code(_name))


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


OPERATORS_IN_PLACE = {
    f"__i{name}__": getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}
for _name, _operator in OPERATORS_IN_PLACE.items():
    setattr(_Proxy, _name, _record(_operator))


class _Tracer(fx.Tracer):
    """Traces into the modules at the paths ``inside``, and records calls of all others."""

    def __init__(self, inside: set[str]) -> None:
        super().__init__()
        self.inside = inside
        self.modes = _modes()
        self.has_begun = False

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self.has_begun = True
        if _modes() != self.modes:  # a graph does not record them
            raise LeftAlone("its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # BlockNotes.fetched records parameters

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inside


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def traced(block: nn.Module, inside: set[str]) -> tuple[fx.Graph, BlockNotes]:
    """The graph of the forward, traced into the modules at the paths ``inside``."""
    if "forward" in vars(block):
        raise LeftAlone("its forward was replaced on the instance")
    arguments = inspect.signature(own_class(block).forward).parameters.values()
    if any(a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise LeftAlone("its forward has optional arguments")
    if any(a.kind is a.KEYWORD_ONLY for a in arguments):
        raise LeftAlone("its forward has keyword-only arguments")
    notes = BlockNotes(block)
    with isolated(), notes.reading():
        graph = _once(block, inside, notes)
        with (
            torch.inference_mode(),
            under_autocast("cpu"),
            under_autocast("cuda"),
        ):  # so that every switch changes the modes
            again = _once(block, inside, notes)
    notes.refuse_unsafe_code()
    if graph.python_code("self").src != again.python_code("self").src:
        raise LeftAlone("its forward is not always the same")
    return graph, notes


def _once(block: nn.Module, inside: set[str], notes: BlockNotes) -> fx.Graph:
    notes.tracer = _Tracer(inside)
    shadows: list[nn.Module] = []
    root = _shadow(block, "", notes, shadows)
    with without_side_effects(*shadows):
        graph = notes.tracer.trace(root)
    if notes.objection:
        raise LeftAlone(notes.objection)
    for node in graph.nodes:
        node.type = None  # annotations may be text, or name classes that cannot be imported
    return graph


def _shadow(m: nn.Module, path: str, notes: BlockNotes, shadows: list[nn.Module]) -> nn.Module:
    """A copy for tracing that notes every read, with one copy of a submodule for each of its paths.

    Lists, dicts and sets are copied, those of the class too.
    """
    kind = own_class(m)
    made: nn.Module = object.__new__(kind)
    shadows.append(made)
    state = lists_of(kind) | vars(m)
    if path and kind.__call__ is not nn.Module.__call__ and not is_known(kind.__module__):
        raise LeftAlone(f"{path} overrides __call__")
    tensors = {name: dict(state[name]) for name in ("_parameters", "_buffers")}
    state = copied({name: value for name, value in state.items() if name not in (STATE, "_modules", *tensors)})
    children = {
        name: child if child is None else _shadow(child, f"{path}.{name}" if path else name, notes, shadows)
        for name, child in m._modules.items()
    }
    object.__setattr__(made, "__dict__", state | tensors | {"_modules": children})
    scope = {"_modules": property(lambda _: _children(notes, path, children), _refuse_new_modules)}
    notes.take(made, path, **(scope if path else {"training": property(_refuse_training)}))
    return made


def _children(notes: BlockNotes, path: str, children: dict[str, Any]) -> dict[str, Any]:
    if notes.tracer.has_begun:
        notes.containers.add(path)
    return children


def _refuse_new_modules(_: nn.Module, __: Any) -> None:
    raise LeftAlone("its forward creates modules")


def _refuse_training(_: nn.Module) -> bool:
    raise LeftAlone("its forward reads self.training")


def may_change_its_input(module: nn.Module) -> bool:
    """False only for modules of torch, timm and torchvision without ``inplace`` and hooks."""
    return any(
        getattr(m, "inplace", False) or not is_known(own_class(m).__module__) or has_modified_call(m)
        for m in module.modules()
    )


def is_known(module: Any) -> bool:
    """Whether functions of this Python module change values only if their names say so."""
    known = ("torch", "timm", "torchvision", "_operator", "operator", "math", "builtins", PACKAGE)
    return str(module).partition(".")[0] in known
