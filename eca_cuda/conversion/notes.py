# SPDX-License-Identifier: MIT
"""Notes what a forward reads while it is tried: attributes of the modules in it, and what ``python_code`` finds.

What it reads must be something that can be compared at later calls (``basis``); else it is a reason to leave it alone.
"""

import inspect
import sys
import types
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Optional

from torch import Tensor, nn

from .basis import HOOKS, Basis, Part, children_of, ties_of
from .python_code import Code, is_constant, is_usable
from .swap import own_class
from .trial import PACKAGE, LeftAlone, copied
from .watch import obstacle

_BARE = nn.Module()
_OF_EVERY_MODULE = {*vars(_BARE), *dir(_BARE)} - {"forward"}
_HIDDEN = {"__dict__", "__class__", "_buffers", "_parameters", "state_dict", *HOOKS}
_HIDDEN |= {
    f"{verb}{what}" for verb in ("", "named_", "get_") for what in ("buffers", "parameters", "buffer", "parameter")
}


class Notes:
    """What the copies of one module read while they ran."""

    def __init__(self, module: nn.Module, may_ask_for_types: bool = True) -> None:
        self.names: dict[str, set[str]] = {}  # by the path of the module that has them
        self.objection: Optional[str] = None
        self.reads_training = False
        self._allowed: dict[tuple[str, str], Any] = {}  # what was read last, and may be
        self.code = Code(module, self.refuse, may_ask_for_types)

    def refuse(self, what: str) -> LeftAlone:
        """The reason, which stays here where the forward catches exceptions."""
        self.objection = self.objection or f"its forward {what}"
        return LeftAlone(self.objection)

    def taken(self) -> AbstractContextManager[None]:
        """While this is entered, functions are read before they run."""
        return self.code.read()

    def take(self, module: nn.Module, path: str, **scope: Any) -> None:
        """Exchange the class of ``module``, a copy that nobody else has, for one that notes what is read."""
        kind = type(module)
        module.__class__ = type(kind.__name__, (Noting, kind), {"_notes": self, "_notes_path": path, **scope})

    def note(self, module: nn.Module, path: str, name: str, value: Any, holds_weights: bool) -> None:
        if self._allowed.get((path, name), self) is value:
            return
        if isinstance(inspect.getattr_static(type(module), name, None), property):
            return  # what it reads is noted
        shown = f"{path}.{name}" if path else name
        if isinstance(value, Tensor):
            if not holds_weights:  # hooks of torch compute weights
                raise self.refuse(f"reads {shown}, a tensor that is no parameter")
        elif isinstance(value, types.MethodType):
            if value.__self__ is not module:
                raise self.refuse(f"calls {shown}, a method of another object or of its class")
        elif not is_constant(value) and not is_usable(value):
            raise self.refuse(f"reads {shown}, a {type(value).__name__}, which may change unseen")
        self.names.setdefault(path, set()).add(name)
        self._allowed[path, name] = value

    def fetched(self, path: str, name: str, value: Any) -> Any:
        """What a forward gets that asks for a parameter, buffer or module: ``value``; if None, that may change."""
        if value is None:
            self.names.setdefault(path, set()).add(name)
        return value

    def basis(self, module: nn.Module, paths: Iterable[str]) -> Basis:
        """Of ``module``, whose copies ran, and the modules in it at these paths. Raises LeftAlone if there is none."""
        code = self.code
        cells = [(place, name, value) for (place, name), value in code.cells.items()]
        try:
            parts = [self._part(module.get_submodule(path), path) for path in paths]
            functions, values = tuple(code.functions), tuple(code.globals.items())
            basis = Basis(tuple(parts), functions, values, tuple(cells), ties_of(module))
            reason = obstacle(basis, module)
        except Exception as error:  # classes and functions of strangers
            reason = f"{type(error).__name__}: {error}"
        if reason:
            raise LeftAlone(f"what its forward reads cannot be watched: {reason}")
        return basis

    def _part(self, module: nn.Module, path: str) -> Part:
        attributes, methods, absent, kind = [], [], [], own_class(module)
        for name in sorted(self.names.get(path, ())):
            value = getattr(module, name)
            where = [w for w in ("_parameters", "_buffers") if value is None and name in vars(module)[w]]
            if where:
                absent.append((where[0], name))
            elif value is None and name in module._modules:
                continue  # which is among the children
            elif isinstance(value, types.MethodType):
                methods.append(name)
            elif not isinstance(value, Tensor):
                attributes.append((name, copied(value)))
        return Part(path, kind, children_of(module), tuple(attributes), tuple(methods), tuple(absent))


class Noting:
    """Comes first among the bases of a copy's class."""

    _notes: ClassVar[Notes]
    _notes_path: ClassVar[str]
    _notes_holds: ClassVar[bool] = False  # a layer whose weights are parameters of the attention

    def __init_subclass__(cls) -> None:
        """Classes that register or refuse their subclasses do not hear of this one."""

    def __del__(self) -> None:
        """Not what the class of the module does when one is gone."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "training":
            self._notes.reads_training = True
            if self._notes_path and _is_strange(sys._getframe(1)):
                raise self._notes.refuse(f"reads {self._notes_path}.training")
        elif name in _HIDDEN:
            if _is_strange(sys._getframe(1)):
                raise self._notes.refuse(f"reads {name}")
        elif name not in _OF_EVERY_MODULE and not name.startswith("_notes"):
            self._notes.note(self, self._notes_path, name, value, self._notes_holds)  # type: ignore[arg-type]
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            value = super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if _is_strange(sys._getframe(1)):
                raise self._notes.refuse(f"asks for {name}, which it has not") from None
            raise
        if isinstance(value, Tensor) and not (isinstance(value, nn.Parameter) or self._notes_holds):
            raise self._notes.refuse(f"uses its buffer {name}")
        # the bias of a layer that holds weights is looked at anyway
        return value if self._notes_holds else self._notes.fetched(self._notes_path, name, value)


def _is_strange(frame: types.FrameType) -> bool:
    return not str(frame.f_globals.get("__name__")).startswith(("torch.", f"{PACKAGE}."))
