# SPDX-License-Identifier: MIT
"""Gives a module another ``forward`` by replacing its class with a class derived from it.

The module stays the same object, so its state and its hooks do not change, ``isinstance`` still holds, and ``restore``
is exact. The derived classes are made when needed; pickles and copies refer to the module's own class.
"""

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Optional
from weakref import WeakValueDictionary

from torch import nn

from .._compat import constant_while_tracing

STATE = "_eca_cuda"  # the one entry in a swapped module's __dict__


@dataclass(frozen=True)
class Source:
    """The source text of a ``forward``, and its globals as (name, module, qualified name) to import."""

    text: str
    imports: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, text: str, objects: dict[str, Any]) -> "Source":
        """``objects`` may hold more than the text uses. Raises AttributeError if a used one cannot be imported."""
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
        exec(compile(self.text, "<forward fused by eca_cuda.convert>", "exec"), scope)
        return scope["forward"]


def _imported(module: str, qualified_name: str) -> Any:
    return functools.reduce(getattr, filter(None, qualified_name.split(".")), importlib.import_module(module))


class _Unknown:
    """The state of a module before ``swap`` sets it, and of instances made by ``type(module)(...)``."""

    modules: tuple[Any, ...] = ()  # for blocks
    weights: tuple[Any, ...] = ()
    residual = norm = False
    ranks: tuple[int, ...] = ()  # for attention
    argument = "x"

    @property
    def found(self) -> "_Unknown":
        return self

    def holds_for(self, module: nn.Module) -> bool:
        """False, so that its own forward runs."""
        return False

    holds_now = holds_for

    def change(self, module: nn.Module) -> str:
        return "it was made by the class of a converted module"


class Swapped(nn.Module):
    """The base of the mixins that define the other ``forward``; ``_eca_cuda`` is its state."""

    if TYPE_CHECKING:
        _eca_cuda: Any
        _eca_cuda_identity: ClassVar[tuple[type, type, Optional[Source]]]
    else:
        _eca_cuda = _Unknown()

    def __init_subclass__(cls) -> None:
        """Keeps base classes from registering or refusing the derived classes."""

    @constant_while_tracing
    def _eca_cuda_holds(self) -> bool:
        """Whether the module is unchanged; ``torch.compile`` treats the result as a constant."""
        return bool(self._eca_cuda.holds_now(self))

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError("torch.jit.script: can't read converted modules: call eca_cuda.revert(model) first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        make, arguments, *rest = reduced
        if arguments and arguments[0] is type(self):
            arguments = arguments[1:]
        return _rebuild, (self._eca_cuda_identity, make, *arguments), *rest


def _rebuild(identity: tuple[type, type, Optional[Source]], make: Any, *arguments: Any) -> Any:
    return make(derived(*identity), *arguments)


# Weak, so that a class lives only as long as a module has it.
_classes: WeakValueDictionary[tuple[type, type, Optional[Source]], type] = WeakValueDictionary()


def derived(mixin: type, own: type, source: Optional[Source] = None) -> type:
    """The class derived from ``own`` with the ``forward`` of ``mixin``; the same one for the same arguments."""
    identity = (mixin, own, source)
    made = _classes.get(identity)
    if made is None:
        scope: dict[str, Any] = {"__module__": own.__module__, "__doc__": own.__doc__, "_eca_cuda_identity": identity}
        if source is not None:
            scope["_eca_cuda_forward"] = source.compile()
        made = _classes[identity] = type(f"Fused{own.__name__}", (mixin, own), scope)
    return made


def swap(module: nn.Module, mixin: type[Swapped], state: Any, source: Optional[Source] = None) -> None:
    """Give ``module`` the ``forward`` of ``mixin`` and this state. Until the state is set, its own forward runs."""
    module.__class__ = derived(mixin, type(module), source)
    module.__dict__[STATE] = state


def restore(module: nn.Module) -> None:
    """Undo ``swap``, even an interrupted one."""
    if isinstance(module, Swapped):
        module.__dict__.pop(STATE, None)  # now its own forward runs
        module.__class__ = module._eca_cuda_identity[1]


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, or the one that it had before it was swapped."""
    own: type[nn.Module] = type(module)._eca_cuda_identity[1] if isinstance(module, Swapped) else type(module)
    return own


def is_wrapped(module: Swapped) -> bool:
    """Whether the class was replaced again after ``swap``, as by ``fully_shard``: then ``swap`` cannot be undone."""
    return type(module) is not derived(*module._eca_cuda_identity)
