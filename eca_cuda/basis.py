# SPDX-License-Identifier: MIT
"""What a forward rests on besides x and weights, and whether that is still there when it is called.

A converted module computes what its own forward computed when it was tried. That holds while the modules in it have the
classes, children, methods and attributes that they had, and no hooks, and while the functions that ran and the globals
that they read are the same. A ``Watch`` asks for that in about a microsecond.
"""

import copy
import operator
import sys
from collections.abc import Callable, KeysView
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Optional, Protocol, TypeVar, Union

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from .submodules import recomputes_weights
from .swap import own_class

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOKS_OF_ALL = [
    getattr(torch_module, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
]
_CODE = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


def is_foreign(hooks: dict[int, Any]) -> bool:
    """Whether there are others among these forward pre-hooks than those of torch that recompute weights."""
    return not all(map(recomputes_weights, hooks.values()))


def is_disturbed(m: nn.Module) -> bool:
    """Whether calling ``m`` runs anything but the forward of its class and hooks that recompute weights."""
    return "forward" in m.__dict__ or bool(
        m._forward_hooks or m._backward_hooks or m._backward_pre_hooks or is_foreign(m._forward_pre_hooks)
    )


def children_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the modules in it."""
    return tuple(name for name, child in module._modules.items() if child is not None)


@dataclass(frozen=True)
class Part:
    """What a forward needs of one module: its class, the names of its children, attributes, methods of its class."""

    path: str
    kind: type
    children: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]
    methods: tuple[str, ...]


# Where a function or a value is found again: in a class, or in a Python module of this name, and by which name there.
Place = tuple[Union[type, str], str]


@dataclass(frozen=True)
class Basis:
    """What a forward needs: of the module and those in it; the functions that ran; the globals and cells they read."""

    parts: tuple[Part, ...] = ()
    functions: tuple[Place, ...] = ()
    globals: tuple[tuple[Place, Any], ...] = ()
    cells: tuple[tuple[Place, str, Any], ...] = ()

    def holds_for(self, module: nn.Module) -> bool:
        """What torch.compile can trace of a ``Watch``; it guards on all that is asked here."""
        for part in self.parts:
            m = _at(module, part.path)
            if m is None or (m is not module and (type(m) is not part.kind or is_disturbed(m))):
                return False
            for name in part.methods:
                if name in m.__dict__:
                    return False
            for name, value in part.attributes:
                if getattr(m, name) != value:
                    return False
        return True


def _at(module: nn.Module, path: str) -> Optional[nn.Module]:
    found: Optional[nn.Module] = module
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found


class _Expected(NamedTuple):
    """What ``get`` must find in ``owner``: the values of these names."""

    owner: Any
    get: Callable[[Any], Any]
    values: Any
    shown: str
    names: tuple[str, ...]


def _expected(owner: Any, values: dict[str, Any], shown: str = "") -> _Expected:
    get: Any = operator.itemgetter if isinstance(owner, dict) else operator.attrgetter
    found = tuple(values.values())
    return _Expected(owner, get(*values), found if len(found) > 1 else found[0], shown, tuple(values))


class _Functions:
    """The functions and globals of a basis as they are when this is made: what must be the same later."""

    def __init__(self, basis: Basis) -> None:
        owned: dict[Union[type, str], dict[str, Any]] = {}
        for part in basis.parts:
            for name in part.methods:
                owned.setdefault(part.kind, {})[name] = getattr(part.kind, name)
        running: dict[Place, Any] = {}
        for owner, name in basis.functions:
            value = getattr(owner, name) if isinstance(owner, type) else vars(sys.modules[owner])[name]
            owned.setdefault(owner, {})[name] = value
            running[owner, name] = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        for (owner, name), value in basis.globals:
            owned.setdefault(owner, {})[name] = value
        self.expected = [
            _expected(owner if isinstance(owner, type) else vars(sys.modules[owner]), values)
            for owner, values in owned.items()
        ]
        for place, name, value in basis.cells:
            function = running[place]
            cell = function.__closure__[function.__code__.co_freevars.index(name)]
            self.expected.append(_expected(cell, {"cell_contents": value}, name))
        self.running = list(running.values())
        self.code = [*map(_CODE, self.running)]


class Watch:
    """A basis with the objects of one module at hand, as they were when the watch was made."""

    def __init__(self, basis: Basis, functions: _Functions, module: nn.Module) -> None:
        self.root = module
        self.functions = functions
        self.missing: Optional[str] = None
        self.parts: list[nn.Module] = []
        self.paths: list[str] = []
        self.kinds: list[type] = []
        self.children: list[tuple[nn.Module, dict[str, Any]]] = []
        self.shadows: list[tuple[KeysView[str], frozenset[str]]] = []  # and names that must not be among them
        self.plain: list[dict[str, Any]] = []  # of modules of torch, where only a forward would matter
        self.hooks: list[Any] = list(_HOOKS_OF_ALL)
        self.recomputing: list[Any] = []
        self.expected = list(functions.expected)
        for part in basis.parts:
            m = _at(module, part.path)
            if m is None or children_of(m) != part.children:
                is_other = m is not None and m is not module and type(m) is not part.kind
                what = f"is a {type(m).__name__}, no {part.kind.__name__}," if is_other else "has other modules in it"
                self.missing = f"{part.path or 'it'} {what if m else 'is gone'}"
                return
            self._add(part, m)
        self.checks = [(e.get, e.owner, e.values) for e in self.expected]

    def _add(self, part: Part, m: nn.Module) -> None:
        attributes = vars(m)
        if m._modules:
            self.children.append((m, dict(m._modules)))
        if m._modules or not part.kind.__module__.startswith("torch."):
            self.shadows.append((attributes.keys(), frozenset((*part.methods, *part.children))))
        else:
            self.plain.append(attributes)
        if m is self.root:
            found_first = frozenset((*part.children, "__getattribute__", "__getattr__"))
            self.shadows.append((vars(own_class(m)).keys(), found_first))
        if m is not self.root:
            self.parts.append(m)
            self.paths.append(part.path)
            self.kinds.append(part.kind)
            self.hooks += [attributes[name] for name in HOOKS if name != "_forward_pre_hooks"]
            (self.recomputing if m._forward_pre_hooks else self.hooks).append(m._forward_pre_hooks)
        of_instance = {name: value for name, value in part.attributes if name in attributes}
        of_class = {name: value for name, value in part.attributes if name not in attributes}
        if of_instance:
            self.expected.append(_expected(attributes, of_instance, part.path))
        if of_class:
            self.expected.append(_expected(m, of_class, part.path))

    def holds(self) -> bool:
        """Whether all is there."""
        if self.missing or any(self.hooks) or (self.recomputing and any(map(is_foreign, self.recomputing))):
            return False
        if [*map(type, self.parts)] != self.kinds:
            return False
        for m, before in self.children:
            if m._modules != before:
                return False
        for attributes in self.plain:
            if "forward" in attributes:
                return False
        for keys, names in self.shadows:
            if not keys.isdisjoint(names):
                return False
        try:
            for get, owner, values in self.checks:
                if get(owner) != values:
                    return False
        except Exception:  # an attribute that is gone, or that cannot be compared any more
            return False
        return [*map(_CODE, self.functions.running)] == self.functions.code

    def change(self) -> str:
        """What is not there any more."""
        if self.missing:
            return self.missing
        if any(_HOOKS_OF_ALL):
            return "there are hooks for all modules"
        for name, m, kind in zip(self.paths, self.parts, self.kinds, strict=True):
            if type(m) is not kind:
                return f"{name} is a {type(m).__name__}, no {kind.__name__},"
            if "forward" in vars(m):
                return f"the forward of {name} was replaced"
            if is_disturbed(m):
                return f"{name} has hooks"
        for found, shadowing in self.shadows:
            for name in sorted(found & shadowing):
                return f"{name} was replaced"
        for owner, _, values, path, keys in self.expected:
            for key, value in zip(keys, values if len(keys) > 1 else (values,), strict=True):
                now = owner.get(key) if isinstance(owner, dict) else getattr(owner, key, None)
                if now is not value and not _equal(now, value):
                    shown = path if key == "cell_contents" else f"{path}.{key}" if path else key
                    return f"{shown} was replaced" if callable(value) else f"{shown} is {now!r}, no longer {value!r},"
        for function, code in zip(self.functions.running, self.functions.code, strict=True):
            if _CODE(function) != code:
                return f"{function.__qualname__} was changed"
        return "the modules in it are others"


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


class _HasBasis(Protocol):
    @property
    def basis(self) -> Basis: ...


Found = TypeVar("Found", bound=_HasBasis)


class Conversion(Generic[Found]):
    """What a module was found to compute, and the watch over what that rests on. Copies have one of their own."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self._functions = _Functions(found.basis)
        self._watch: Optional[Watch] = None

    def __reduce__(self) -> Any:
        return Conversion, (self.found,)

    def __deepcopy__(self, _: Any) -> "Conversion[Found]":
        other = copy.copy(self)
        other._functions = self._functions
        return other

    def holds_for(self, module: nn.Module) -> bool:
        """Whether all is still there; a module that was exchanged for an equal one is."""
        if torch.compiler.is_compiling():
            return self.found.basis.holds_for(module)
        watch = self._watch
        if watch is not None and watch.root is module and watch.holds():
            return True
        self._watch = watch = Watch(self.found.basis, self._functions, module)
        return watch.holds()

    def change(self, module: nn.Module) -> Optional[str]:
        """What is not there any more."""
        return None if self.holds_for(module) or self._watch is None else self._watch.change()
