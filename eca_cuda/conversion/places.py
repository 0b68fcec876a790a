# SPDX-License-Identifier: MIT
"""Finds functions and values again by name, and tells whether a function is still the same, in any process."""

import functools
import hashlib
import sys
import types
from typing import Any, NamedTuple, Union

WRAPPED = "__wrapped__"  # the step to the function that a decorator wraps; other steps are names of cells


class Place(NamedTuple):
    """The place of a function or value: a name in a class or Python module, and steps from there into closures.

    A function that is an attribute of an nn.Module is its own owner, without a name.
    """

    owner: Union[type, str, types.FunctionType]
    name: str
    steps: tuple[str, ...] = ()

    def then(self, step: str) -> "Place":
        return self._replace(steps=(*self.steps, step))

    def value(self) -> Any:
        """The value at this place. Raises any exception of the lookup."""
        if isinstance(self.owner, types.FunctionType):
            value: Any = self.owner
        else:
            value = self.scope()[self.name] if isinstance(self.owner, str) else getattr(self.owner, self.name)
        for step in self.steps:
            value = function_of(value)
            value = getattr(value, WRAPPED) if step == WRAPPED else cell(value, step).cell_contents
        return value

    def scope(self) -> Any:
        """The class, or the globals of the Python module."""
        return vars(sys.modules[self.owner]) if isinstance(self.owner, str) else self.owner


def function_of(value: Any) -> Any:
    """The function of a property or a method."""
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, (classmethod, staticmethod, types.MethodType)) else value


def cell(function: Any, name: str) -> Any:
    """The cell of a closure variable."""
    return function.__closure__[function.__code__.co_freevars.index(name)]


class Digest(NamedTuple):
    """Replaces a function in a pickle."""

    code: str


def digest(function: Any) -> str:
    """Equal for functions with equal code and defaults, in any process of the same Python version."""
    parts = [_code(function.__code__), function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
    return hashlib.sha256("\n".join(map(_shown, parts)).encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _code(code: types.CodeType) -> str:
    return "\n".join(map(_shown, _facts(code)))


def _facts(code: types.CodeType) -> list[Any]:
    """All properties but the file and line numbers."""
    names = "argcount posonlyargcount kwonlyargcount flags code names varnames freevars cellvars exceptiontable"
    return [*(getattr(code, f"co_{name}", None) for name in names.split()), code.co_consts]


def _shown(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return f"code {[*map(_shown, _facts(value))]}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} {[*map(_shown, value)]}"
    if isinstance(value, (set, frozenset)):
        return f"set {sorted(map(_shown, value))}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return f"{type(value).__name__} {value.__module__}.{value.__qualname__}"
    return f"{type(value).__name__} {value!r}"
