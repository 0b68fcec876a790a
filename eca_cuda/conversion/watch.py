# SPDX-License-Identifier: MIT
"""Checks at each call, in about a microsecond, that the basis of a converted module still holds."""

import functools
import keyword
import types
from collections.abc import Callable, KeysView
from typing import Any, Generic, NamedTuple, Optional, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .basis import HOOKS, Basis, Part, at, children_of, has_modified_call, has_user_hooks
from .places import WRAPPED, Digest, Place, cell, digest, function_of

_HOOKS_OF_ALL = [
    getattr(torch_module, f"_global_{kind}_hooks") for kind in ("forward", "forward_pre", "backward", "backward_pre")
]
_Shadow = tuple[KeysView[str], frozenset[str]]  # keys of a namespace, and names that must not be among them

_ITSELF, _ITS_DICT = object(), object()  # stand for the module and its __dict__, which a watch must not refer to


class _Expected(NamedTuple):
    """Expected values: attributes of an owner, or entries if it is a dict."""

    owner: Any
    values: dict[str, Any]
    shown: str = ""
    within: str = ""  # the name of a dict in the owner, to look in instead

    def found_in(self, module: nn.Module) -> dict[str, Any]:
        """The current values."""
        owner: Any = module if self.owner is _ITSELF else vars(module) if self.owner is _ITS_DICT else self.owner
        owner = owner[self.within] if self.within else owner
        return {n: owner.get(n) if isinstance(owner, dict) else getattr(owner, n, None) for n in self.values}


class _Check:
    """Generates one function for all conditions, as a loop takes twice as long."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self.wrong: list[str] = []  # conditions that must be false; they call the objects o0, o1, ...

    def name(self, value: Any) -> str:
        if value is _ITSELF or value is _ITS_DICT:
            return "module" if value is _ITSELF else "own"
        self.objects.append(value)
        return f"o{len(self.objects) - 1}"

    def expect(self, expected: _Expected) -> None:
        owner = self.name(expected.owner) + (f"[{expected.within!r}]" if expected.within else "")
        is_dict = expected.within or expected.owner is _ITS_DICT or isinstance(expected.owner, dict)
        for name, value in expected.values.items():
            is_name = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
            asked = f"{owner}[{name!r}]" if is_dict else f"{owner}.{name}" if is_name else ""
            different = "is not" if isinstance(value, (types.FunctionType, types.CodeType)) else "!="
            self.wrong.append(f"{asked or f'getattr({owner}, {name!r})'} {different} {self.name(value)}")

    def compile(self) -> Callable[[nn.Module], bool]:
        names = "".join(f"o{i}, " for i in range(len(self.objects)))
        check: Callable[[nn.Module], bool] = _compiled(names, " or ".join(self.wrong) or "False")(self.objects)
        return check


@functools.lru_cache(maxsize=256)
def _compiled(names: str, wrong: str) -> Any:
    """Cached, as similar modules need the same text."""
    text = f"""
def make(objects):
    {names or "_ "}= objects

    def holds(module):
        own = module.__dict__
        try:
            return not ({wrong})
        except Exception:  # a missing attribute, or one that cannot be compared
            return False

    return holds
"""
    scope: dict[str, Any] = {"has_user_hooks": has_user_hooks}
    exec(compile(text, "<what eca_cuda.convert watches>", "exec"), scope)
    return scope["make"]


def _unpickled(value: Any, find: Callable[[], Any]) -> Any:
    """A value from a pickle. A digest becomes the current function if that has the same digest."""
    if not isinstance(value, Digest):
        return value
    now = find()
    return now if isinstance(now, types.FunctionType) and digest(now) == value.code else value


class _Functions:
    """The functions and globals of a basis when this object is made; later ones must be the same."""

    def __init__(self, basis: Basis) -> None:
        self.lost: Optional[str] = None
        self.expected: list[_Expected] = []
        self.running: list[Any] = []
        self.shadows: list[_Shadow] = []
        try:
            self._find(basis)
        except Exception as error:  # a place from a pickle may not exist
            self.lost = f"a function or global that it used is missing ({type(error).__name__}: {error})"
        self.expected += [_Expected(f, {"__code__": f.__code__}, f.__qualname__) for f in self.running]

    def _find(self, basis: Basis) -> None:
        owned: dict[Any, dict[str, Any]] = {}
        for part in basis.parts:
            for name in part.methods:
                owned.setdefault(part.kind, {})[name] = getattr(part.kind, name)
            self._add_shadows(part)
        for place, code in zip(map(Place._make, basis.functions), basis.digests, strict=True):
            value = place.value()
            function = function_of(value)
            if isinstance(function, types.FunctionType):
                self.running.append(function)
                if function.__defaults__ or function.__kwdefaults__:  # defaults added later would not be used
                    values = {name: getattr(function, name) for name in ("__defaults__", "__kwdefaults__")}
                    self.expected.append(_Expected(function, values, function.__qualname__))
                if digest(function) != code:
                    self.lost = self.lost or f"{place.name or function.__qualname__} was changed"
            if place.name and not place.steps:
                owned.setdefault(place.owner, {})[place.name] = value
            elif place.steps and place.steps[-1] == WRAPPED:
                outer = function_of(place._replace(steps=place.steps[:-1]).value())
                self.expected.append(_Expected(outer, {WRAPPED: value}, place.name))
        for place, value in basis.globals:
            owned.setdefault(place.owner, {})[place.name] = _unpickled(value, place.value)
        self.expected += [_Expected(Place(owner, "").scope(), values) for owner, values in owned.items()]
        for place, name, value in basis.cells:
            enclosing = cell(function_of(place.value()), name)
            value = _unpickled(value, functools.partial(getattr, enclosing, "cell_contents"))
            self.expected.append(_Expected(enclosing, {"cell_contents": value}, name))

    def _add_shadows(self, part: Part) -> None:
        """Forbid attributes in the class that would be found before children, or replace attribute access."""
        names = {"__getattribute__", "__getattr__", *(name for name, _ in (*part.children, *part.absent))}
        names |= {name for _, name in part.absent}
        for kind in part.kind.__mro__:
            if not kind.__module__.startswith(("torch.", "builtins")):
                scope = vars(kind)
                shadow = (scope.keys(), frozenset(names - scope.keys()))
                if shadow not in self.shadows:
                    self.shadows.append(shadow)


class Watch:
    """The check of a basis for one module, with the submodules that it had when the watch was made.

    It is stored in the module and holds no reference to the module, which would be a cycle.
    """

    def __init__(self, basis: Basis, functions: _Functions, module: nn.Module) -> None:
        self.functions = functions
        self.missing = functions.lost
        self.holds: Callable[[nn.Module], bool] = lambda _: False  # whether the basis holds
        self.parts: list[tuple[str, nn.Module, type]] = []  # path, module, class
        self.shadows: list[_Shadow] = list(functions.shadows)
        self.own_names: frozenset[str] = frozenset()  # names that must not be in the __dict__ of the module
        self.check = _Check()
        self.check.wrong += map(self.check.name, _HOOKS_OF_ALL)
        self.expected = list(functions.expected)
        for part in basis.parts:
            m = at(module, part.path)
            if m is None or children_of(m) != part.children:
                is_other = m is not None and m is not module and type(m) is not part.kind
                what = f"is a {type(m).__name__}, not a {part.kind.__name__}" if is_other else "has other submodules"
                self.missing = self.missing or f"{part.path or 'it'} {what if m else 'is missing'}"
                return
            for path in basis.apart:
                if m is at(module, path) and part.path != path:
                    self.missing = self.missing or f"{path} and {part.path} are the same module"
                    return
            self._add(part, m, m is module)
        for path, first in basis.ties:
            if at(module, path) is not at(module, first):
                self.missing = self.missing or f"{path} is no longer the same as {first or 'it'}"
                return
            self._follow(module, path)
            self._follow(module, first)
        self.check.wrong.append(f"not own.keys().isdisjoint({self.check.name(self.own_names)})")
        for keys, names in self.shadows:
            self.check.wrong.append(f"not {self.check.name(keys)}.isdisjoint({self.check.name(names)})")
        for expected in self.expected:
            self.check.expect(expected)
        if not self.missing:
            self.holds = self.check.compile()

    def _follow(self, module: nn.Module, path: str) -> None:
        """Watch the children of the modules around ``path``."""
        while path:
            path = path.rpartition(".")[0]
            m = at(module, path)
            if m is not None and m is not module and not any(m is part for _, part, _ in self.parts):
                self.expected.append(_Expected(vars(m), {"_modules": dict(m._modules)}, path))

    def _add(self, part: Part, m: nn.Module, is_root: bool) -> None:
        attributes = vars(m)
        shadowing = frozenset((*part.methods, *(name for name, _ in part.children), *(n for _, n in part.absent)))
        values = {name: _unpickled(value, functools.partial(getattr, m, name, None)) for name, value in part.attributes}
        of_instance = {name: value for name, value in values.items() if name in attributes}
        of_class = {name: value for name, value in values.items() if name not in attributes}
        is_plain = part.kind.__module__.startswith("torch.") and part.kind.__module__ != nn.Sequential.__module__
        if m._modules or not is_plain:
            of_instance["_modules"] = dict(m._modules)
        owner: Any = _ITSELF if is_root else m
        entries: Any = _ITS_DICT if is_root else attributes
        if is_root:
            self.own_names = shadowing
        else:
            self.parts.append((part.path, m, part.kind))
            if m._modules or not is_plain:
                self.shadows.append((attributes.keys(), shadowing))
            self._add_calls(m, part.kind)
        self.expected.append(_Expected(entries, of_instance, part.path))
        self.expected.append(_Expected(owner, of_class, part.path))
        for where, name in part.absent:
            self.expected.append(_Expected(entries, {name: None}, part.path, where))

    def _add_calls(self, m: nn.Module, kind: type) -> None:
        """Require that a call of it runs the forward of its class and nothing else."""
        check = self.check
        module, attributes = check.name(m), check.name(vars(m))
        check.wrong += [f"type({module}) is not {check.name(kind)}", f"'forward' in {attributes}"]
        for name in HOOKS:
            hooks = check.name(vars(m)[name])
            recompute = name == "_forward_pre_hooks" and vars(m)[name]
            check.wrong.append(
                f"{attributes}[{name!r}] is not {hooks}"
            )  # some code replaces the dict to remove all hooks
            check.wrong.append(f"has_user_hooks({hooks})" if recompute else hooks)

    def change(self, module: nn.Module) -> str:
        """What differs from the basis."""
        if self.missing:
            return self.missing
        if any(_HOOKS_OF_ALL):
            return "there are hooks for all modules"
        for name, m, kind in self.parts:
            if type(m) is not kind:
                return f"{name} is a {type(m).__name__}, not a {kind.__name__}"
            if "forward" in vars(m):
                return f"the forward of {name} was replaced"
            if has_modified_call(m):
                return f"{name} has hooks"
        for found, shadowing in ((vars(module).keys(), self.own_names), *self.shadows):
            for name in sorted(found & shadowing):
                return f"{name} was replaced"
        for expected in self.expected:
            for key, now in expected.found_in(module).items():
                value, path = expected.values[key], expected.shown
                if now is not value and not _equal(now, value):
                    if key in ("__code__", "__defaults__", "__kwdefaults__"):
                        return f"{path} was changed"
                    shown = path if key == "cell_contents" else f"{path}.{key}" if path else key
                    is_thing = callable(value) or isinstance(value, Digest) or isinstance(now, Tensor)
                    return f"{shown} was replaced" if is_thing else f"{shown} is {now!r}, no longer {value!r}"
        return "its submodules were replaced"


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:
        return False


def obstacle(basis: Basis, module: nn.Module) -> Optional[str]:
    """The reason why a module cannot be watched, or None."""
    return Watch(basis, _Functions(basis), module).missing


class _HasBasis(Protocol):
    @property
    def basis(self) -> Basis: ...


Found = TypeVar("Found", bound=_HasBasis)


class Conversion(Generic[Found]):
    """What a module computes, and the watch over its basis. A copy of the module gets its own watch."""

    def __init__(self, found: Found, functions: Optional[_Functions] = None) -> None:
        self.found = found
        self._functions = functions or _Functions(found.basis)
        self._watch: Optional[Watch] = None

    def __reduce__(self) -> Any:
        return Conversion, (self.found,)

    def __deepcopy__(self, _: Any) -> "Conversion[Found]":
        return Conversion(self.found, self._functions)

    def holds_for(self, module: nn.Module) -> bool:
        """Whether the basis holds. Submodules may be replaced by equal ones."""
        if torch.compiler.is_compiling():
            asked: Any = module
            return bool(asked._eca_cuda_holds()) and self.found.basis.holds_for(module)
        watch = self._watch
        return (watch is not None and watch.holds(module)) or self._watch_again(module)

    def holds_now(self, module: nn.Module) -> bool:
        """``holds_for`` outside of torch.compile."""
        watch = self._watch
        return (watch is not None and watch.holds(module)) or self._watch_again(module)

    def _watch_again(self, module: nn.Module) -> bool:
        self._watch = watch = Watch(self.found.basis, self._functions, module)
        return watch.holds(module)

    def change(self, module: nn.Module) -> Optional[str]:
        """What differs from the basis, or None."""
        return None if self.holds_now(module) or self._watch is None else self._watch.change(module)
