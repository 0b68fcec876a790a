# SPDX-License-Identifier: MIT
"""What a forward depends on besides x and the weights.

A converted module stands in for its own forward as long as nothing that this forward depends on changes: classes,
children, methods, attributes and hooks of the submodules, the functions that ran, and the globals that they read.
``watch`` checks this.
"""

import types
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from torch import nn

from ..submodules import recomputes_weights
from .places import Digest, Place, digest, function_of

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


def has_user_hooks(hooks: dict[int, Any]) -> bool:
    """Whether any of these forward pre-hooks is not one of torch's that recompute weights."""
    return not all(map(recomputes_weights, hooks.values()))


def has_modified_call(m: nn.Module) -> bool:
    """Whether calling ``m`` runs anything but the forward of its class and hooks that recompute weights."""
    return "forward" in m.__dict__ or bool(
        m._forward_hooks or m._backward_hooks or m._backward_pre_hooks or has_user_hooks(m._forward_pre_hooks)
    )


def children_of(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """The name of each child, and whether it is a module and not ``None``."""
    return tuple((name, child is not None) for name, child in module._modules.items())


def ties_of(module: nn.Module) -> tuple[tuple[str, str], ...]:
    """For modules with several paths: each further path, with the first one."""
    paths = {m: path for path, m in module.named_modules()}
    found = []
    for m, path in paths.items():
        for name, child in m._modules.items():
            full = f"{path}.{name}" if path else name
            if child is not None and paths[child] != full:
                found.append((full, paths[child]))
    return tuple(found)


@dataclass(frozen=True)
class Part:
    """What a forward uses of one module: its class, its children, its attributes, and methods of its class."""

    path: str
    kind: type
    children: tuple[tuple[str, bool], ...]
    attributes: tuple[tuple[str, Any], ...]
    methods: tuple[str, ...]
    absent: tuple[tuple[str, str], ...] = ()  # dict and name of parameters and buffers that are None


@dataclass(frozen=True)
class Basis:
    """What a forward uses: modules, functions, and the globals and cells that they read."""

    parts: tuple[Part, ...] = ()
    functions: tuple[Place, ...] = ()
    globals: tuple[tuple[Place, Any], ...] = ()
    cells: tuple[tuple[Place, str, Any], ...] = ()
    ties: tuple[tuple[str, str], ...] = ()  # two paths of one module
    apart: tuple[str, ...] = ()  # paths of modules that must not be a part at another path
    digests: tuple[str, ...] = field(init=False, compare=False)  # of the functions

    def __post_init__(self) -> None:
        functions = [function_of(Place(*place).value()) for place in self.functions]
        found = tuple(digest(f) if isinstance(f, types.FunctionType) else "" for f in functions)
        object.__setattr__(self, "digests", found)

    def __reduce__(self) -> Any:
        """Replaces functions by digests: they cannot always be pickled, and may differ where the pickle is loaded."""
        state = dict(vars(self))
        state["parts"] = tuple(
            replace(part, attributes=tuple((name, _pickled(value)) for name, value in part.attributes))
            for part in self.parts
        )
        state["globals"] = tuple((place, _pickled(value)) for place, value in self.globals)
        state["cells"] = tuple((place, name, _pickled(value)) for place, name, value in self.cells)
        return _loaded, (state,)

    def holds_for(self, module: nn.Module) -> bool:
        """The checks of a ``Watch`` that torch.compile can trace and guard on."""
        for part in self.parts:
            m = at(module, part.path)
            if m is None or (m is not module and (type(m) is not part.kind or has_modified_call(m))):
                return False
            if len(m._modules) != len(part.children):
                return False
            for name, is_there in part.children:
                if name not in m._modules or (m._modules[name] is not None) != is_there:
                    return False
            for name in part.methods:
                if name in m.__dict__:
                    return False
                getattr(m, name)  # so that torch.compile guards on the method of the class
            for name, value in part.attributes:
                if getattr(m, name) != value:
                    return False
            for _, name in part.absent:
                if getattr(m, name) is not None:
                    return False
        for path in self.apart:
            for part in self.parts:
                if part.path != path and at(module, part.path) is at(module, path):
                    return False
        return all(at(module, path) is at(module, first) for path, first in self.ties)


def _loaded(state: dict[str, Any]) -> Basis:
    basis = object.__new__(Basis)
    vars(basis).update(state)
    return basis


def _pickled(value: Any) -> Any:
    return Digest(digest(value)) if isinstance(value, types.FunctionType) else value


def at(module: nn.Module, path: str) -> Optional[nn.Module]:
    found: Optional[nn.Module] = module
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found
