# SPDX-License-Identifier: MIT
"""Another ``forward`` for a module that stays the same object: its class is exchanged for one derived from its own.

So parameters, buffers, hooks, names, keys, train/eval, device, dtype and sharing cannot change, ``isinstance`` goes on
to hold, and ``restore`` is exact. The derived classes are made when needed; pickles and copies name the module's own.
"""

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar, Optional

from torch import nn

_STATE = "_eca_cuda"  # the one entry in a swapped module's __dict__


@dataclass(frozen=True)
class Source:
    """A ``forward`` as text, and the objects it names as the paths (module, name) that they are imported from."""

    text: str
    imports: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, text: str, objects: dict[str, Any]) -> "Source":
        """``objects`` may hold more than the text uses. Raises AttributeError for one that cannot be imported."""
        body = compile(text, "", "exec")
        used = {name for code in (body, *body.co_consts) for name in getattr(code, "co_names", ())}
        paths = []
        for name in sorted(used & objects.keys()):
            value = objects[name]
            path = (value.__name__, "") if isinstance(value, ModuleType) else (value.__module__, value.__qualname__)
            if _imported(*path) is not value:
                raise AttributeError(f"{name} cannot be imported as {'.'.join(path)}")
            paths.append((name, *path))
        return cls(text, tuple(paths))

    def compile(self) -> Any:
        scope = {name: _imported(module, qualified) for name, module, qualified in self.imports}
        exec(compile(self.text, "<forward with the residual fused, by eca_cuda.convert>", "exec"), scope)
        return scope["forward"]


def _imported(module: str, qualified_name: str) -> Any:
    return functools.reduce(getattr, filter(None, qualified_name.split(".")), importlib.import_module(module))


class Swapped(nn.Module):
    """Base of the mixins that carry the other ``forward``; ``_eca_cuda`` holds what it needs to know."""

    _eca_cuda: Any
    _eca_cuda_identity: ClassVar[tuple[type, type, Optional[Source]]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, arguments, *rest = reduced
        if arguments and arguments[0] is type(self):
            arguments = arguments[1:]
        return _rebuild, (self._eca_cuda_identity, make, *arguments), *rest


def _rebuild(identity: tuple[type, type, Optional[Source]], make: Any, *arguments: Any) -> Any:
    return make(_derived(*identity), *arguments)


@functools.cache
def _derived(mixin: type, own: type, source: Optional[Source]) -> type:
    scope: dict[str, Any] = {"__module__": own.__module__, "__doc__": own.__doc__}
    scope["_eca_cuda_identity"] = (mixin, own, source)
    if source is not None:
        scope["_eca_cuda_forward"] = source.compile()
    return type(f"Fused{own.__name__}", (mixin, own), scope)


def swap(module: nn.Module, mixin: type[Swapped], state: Any, source: Optional[Source] = None) -> None:
    """Give ``module`` the ``forward`` of ``mixin``, which finds ``state`` in ``_eca_cuda``."""
    module.__dict__[_STATE] = state
    module.__class__ = _derived(mixin, type(module), source)  # type: ignore[arg-type]  # mypy: no Hashable


def restore(module: Swapped) -> None:
    """Undo ``swap``."""
    module.__class__ = module._eca_cuda_identity[1]
    del module.__dict__[_STATE]


def is_wrapped(module: Swapped) -> bool:
    """Whether the class was exchanged again after ``swap``, as ``fully_shard`` does: then it cannot be undone."""
    return type(module) is not _derived(*module._eca_cuda_identity)
