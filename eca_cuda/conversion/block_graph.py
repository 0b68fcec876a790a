# SPDX-License-Identifier: MIT
"""The torch.fx graph of a block's forward, if it is always the same and the forward does nothing else.

The block's children are leaves, so what they do stays theirs. What torch.fx would not notice is a reason to leave the
block alone: modes of torch, tests with ``is``, values of its own that the forward changes.
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

from .basis import is_disturbed
from .notes import Notes
from .places import WRAPPED, function_of
from .replica import lists_of
from .swap import STATE, own_class
from .trial import PACKAGE, LeftAlone, copied, isolated, under_autocast, without_side_effects


class BlockNotes(Notes):
    """Notes, too, what the forward gets from ``_modules`` and ``_parameters`` of the modules in it."""

    tracer: "_Tracer"

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block, may_ask_for_types=False)
        self.containers = {""}  # paths of modules of which the forward itself takes children
        self.weights: set[tuple[str, str]] = set()  # path of a module, name of its parameter

    def note(self, module: nn.Module, path: str, name: str, value: Any, holds_weights: bool) -> None:
        if name == "forward" and _is_of_a_stranger(sys._getframe(2)):  # called by the forward: no call of the module
            self.containers.add(path)
        super().note(module, path, name, value, holds_weights)

    def fetched(self, path: str, name: str, value: Any) -> Any:
        if isinstance(value, nn.Module):
            self.containers.add(path)
        if not isinstance(value, nn.Parameter):
            return super().fetched(path, name, value)
        self.weights.add((path, name))  # by its name, as two names may stand for one parameter only now
        return self.tracer.create_proxy("get_attr", f"{path}.{name}" if path else name, (), {})

    def paths(self) -> set[str]:
        """Of the modules of which more was read than that they can be called."""
        return self.containers | {path for path, names in self.names.items() if names != {"forward"}}

    def refuse_unsafe_code(self) -> None:
        """Reads the functions that ran, for what torch.fx does not notice."""
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
                    raise LeftAlone("its forward, or a method that it calls, has a decorator of another package")


def _unsafe_in(code: types.CodeType) -> Optional[str]:
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    names = [step.opname for step in steps]
    for i, name in enumerate(names):
        if name == "IS_OP" and names[i - 1] != "LOAD_CONST":
            return "tests whether two values are one object"
        if name == "IS_OP" or name.endswith(("_IF_NONE", "_IF_NOT_NONE")):
            last = i - 1 - (name == "IS_OP")
            first = last
            while first > 0 and names[first] == "LOAD_ATTR":
                first -= 1
            loaded = steps[first].argval  # two names in one step of Python 3.13
            owner = loaded[-1] if isinstance(loaded, tuple) else loaded
            if first == last or not ("LOAD_FAST" in names[first] or names[first] == "LOAD_DEREF") or owner != "self":
                return "tests whether something is None, True or False that is no attribute of self"
    return None


def _is_of_a_stranger(frame: types.FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in ("torch", PACKAGE)


class _Proxy(fx.Proxy):
    """Records ``y += x`` as what it is; torch.fx's own records ``y = y + x``, but aliases and dtypes differ."""

    @property  # type: ignore[misc]  # mypy: object's can be set
    def __class__(self) -> type:
        """``isinstance`` asks for it, and a proxy is no Tensor: a forward that asks would go another way than usual."""
        if _is_of_a_stranger(sys._getframe(1)):
            raise LeftAlone("its forward asks for the type of a value")
        return _Proxy


def _refuse_to_strangers(name: str) -> Callable[..., Any]:
    def method(self: _Proxy, *args: Any) -> Any:
        if _is_of_a_stranger(sys._getframe(1)):  # looks a size up in a dict, say
            raise LeftAlone("its forward hashes or prints a value")
        return getattr(object, name)(self, *args)

    return method


for _name in ("__hash__", "__format__", "__str__", "__repr__"):
    setattr(_Proxy, _name, _refuse_to_strangers(_name))


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


OPERATORS_IN_PLACE = {
    f"__i{name}__": getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
}
for _name, _operator in OPERATORS_IN_PLACE.items():
    setattr(_Proxy, _name, _record(_operator))


class _Tracer(fx.Tracer):
    """Goes into nothing but these paths."""

    def __init__(self, inside: set[str]) -> None:
        super().__init__()
        self.inside = inside
        self.modes = _modes()
        self.has_begun = False

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self.has_begun = True
        if _modes() != self.modes:  # a graph does not hold them
            raise LeftAlone("its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # the notes record parameters, by their names

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.inside


def _modes() -> tuple[Any, ...]:
    autocast = [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


def traced(block: nn.Module, inside: set[str]) -> tuple[fx.Graph, BlockNotes]:
    """The graph of the forward, with the modules at the paths ``inside`` gone into."""
    if "forward" in vars(block):
        raise LeftAlone("its forward was replaced on the instance")
    arguments = inspect.signature(own_class(block).forward).parameters.values()
    if any(a.default is not a.empty or a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise LeftAlone("its forward has optional arguments")
    if any(a.kind is a.KEYWORD_ONLY for a in arguments):
        raise LeftAlone("its forward has arguments that are given by name only")
    notes = BlockNotes(block)
    with isolated(), notes.taken():
        graph = _once(block, inside, notes)
        with torch.inference_mode(), under_autocast("cpu"), under_autocast("cuda"):  # so that each switch shows
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
        node.type = None  # annotations, which may be text, or of classes that cannot be imported
    return graph


def _shadow(m: nn.Module, path: str, notes: BlockNotes, shadows: list[nn.Module]) -> nn.Module:
    """A copy whose modules, which will not run, and itself note what is read of them; one for each path.

    Lists, dicts and sets, the class's too, are copies.
    """
    kind = own_class(m)
    made: nn.Module = object.__new__(kind)
    shadows.append(made)
    state = lists_of(kind) | vars(m)
    if path and kind.__call__ is not nn.Module.__call__ and not is_known(kind.__module__):
        raise LeftAlone(f"{path} has a __call__ of its own")
    tensors = {name: dict(state[name]) for name in ("_parameters", "_buffers")}
    state = copied({name: value for name, value in state.items() if name not in (STATE, "_modules", *tensors)})
    children = {
        name: child if child is None else _shadow(child, f"{path}.{name}" if path else name, notes, shadows)
        for name, child in m._modules.items()
    }
    object.__setattr__(made, "__dict__", state | tensors | {"_modules": children})
    scope = {"_modules": property(lambda _: _children(notes, path, children), _refuse_to_make)}
    notes.take(made, path, **(scope if path else {"training": property(_refuse_to_say)}))
    return made


def _children(notes: BlockNotes, path: str, children: dict[str, Any]) -> dict[str, Any]:
    if notes.tracer.has_begun:
        notes.containers.add(path)
    return children


def _refuse_to_make(_: nn.Module, __: Any) -> None:
    raise LeftAlone("its forward makes modules")


def _refuse_to_say(_: nn.Module) -> bool:
    raise LeftAlone("its forward reads self.training")


def may_change_its_input(module: nn.Module) -> bool:
    """Whether it is not known that it does not: of torch, timm or torchvision, and without ``inplace``."""
    return any(
        getattr(m, "inplace", False) or not is_known(own_class(m).__module__) or is_disturbed(m)
        for m in module.modules()
    )


def is_known(module: Any) -> bool:
    """Whether the Python module of this name comes with something that changes no values unless its name says so."""
    known = ("torch", "timm", "torchvision", "_operator", "operator", "math", "builtins", PACKAGE)
    return str(module).partition(".")[0] in known
