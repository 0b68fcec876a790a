# SPDX-License-Identifier: MIT
"""Where a function is found again, and whether it is still the same, also in another process."""

import functools
import hashlib
import sys
import types
from typing import Any, NamedTuple, Union

WRAPPED = "__wrapped__"  # a step to what a decorator wraps; all others are the names of cells


class Place(NamedTuple):
    """A function or value by its name in a class or in a Python module, and steps from there to what it encloses.

    A function that is an attribute of a module is its own owner, without a name.
    """

    owner: Union[type, str, types.FunctionType]
    name: str
    steps: tuple[str, ...] = ()

    def then(self, step: str) -> "Place":
        return self._replace(steps=(*self.steps, step))

    def value(self) -> Any:
        """What is there. Raises whatever looking for it raises."""
        if isinstance(self.owner, types.FunctionType):
            value: Any = self.owner
        else:
            value = self.scope()[self.name] if isinstance(self.owner, str) else getattr(self.owner, self.name)
        for step in self.steps:
            value = function_of(value)
            value = getattr(value, WRAPPED) if step == WRAPPED else cell(value, step).cell_contents
        return value

    def scope(self) -> Any:
        """The class, or the globals."""
        return vars(sys.modules[self.owner]) if isinstance(self.owner, str) else self.owner


def function_of(value: Any) -> Any:
    """The function of a property or a method."""
    if isinstance(value, property):
        return value.fget
    return value.__func__ if isinstance(value, (classmethod, staticmethod, types.MethodType)) else value


def cell(function: Any, name: str) -> Any:
    """Where a function finds what it encloses."""
    return function.__closure__[function.__code__.co_freevars.index(name)]


class Digest(NamedTuple):
    """Stands for a function in a pickle."""

    code: str


def digest(function: Any) -> str:
    """The same for functions that do the same, in any process of the same version of Python."""
    parts = [_code(function.__code__), function.__defaults__, sorted((function.__kwdefaults__ or {}).items())]
    return hashlib.sha256("\n".join(map(_shown, parts)).encode()).hexdigest()


@functools.lru_cache(maxsize=1024)
def _code(code: types.CodeType) -> str:
    return "\n".join(map(_shown, _facts(code)))


def _facts(code: types.CodeType) -> list[Any]:
    """All but where it stands."""
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
