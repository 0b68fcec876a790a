# SPDX-License-Identifier: MIT
"""Notes what a forward reads during a trial: attributes of its modules, and what ``python_code`` finds.

Each value must be one that can be compared at later calls (``basis``); otherwise the module is left alone.
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
from .trial import LeftAlone, copied, is_user_code
from .watch import obstacle

_BARE = nn.Module()
_OF_EVERY_MODULE = {*vars(_BARE), *dir(_BARE)} - {"forward"}
_HIDDEN = {"__dict__", "__class__", "_buffers", "_parameters", "state_dict", *HOOKS}
_HIDDEN |= {
    f"{verb}{what}" for verb in ("", "named_", "get_") for what in ("buffers", "parameters", "buffer", "parameter")
}


class Notes:
    """The values that the copies of one module read while they ran."""

    def __init__(self, module: nn.Module, may_ask_for_types: bool = True) -> None:
        self.names: dict[str, set[str]] = {}  # attributes by the path of their module
        self.objection: Optional[str] = None
        self.reads_training = False
        self._allowed: dict[tuple[str, str], Any] = {}  # the last value of each attribute that may be read
        self.code = Code(module, self.refuse, may_ask_for_types)

    def refuse(self, what: str) -> LeftAlone:
        """A LeftAlone to raise. The reason is kept in case the forward catches exceptions."""
        self.objection = self.objection or f"its forward {what}"
        return LeftAlone(self.objection)

    def reading(self) -> AbstractContextManager[None]:
        """In the body, the code of each function is read before it runs."""
        return self.code.read()

    def take(self, module: nn.Module, path: str, **scope: Any) -> None:
        """Replace the class of ``module``, a private copy, by one that notes what is read."""
        kind = type(module)
        module.__class__ = type(kind.__name__, (Noting, kind), {"_notes": self, "_notes_path": path, **scope})

    def note(self, module: nn.Module, path: str, name: str, value: Any, holds_weights: bool) -> None:
        if self._allowed.get((path, name), self) is value:
            return
        if isinstance(inspect.getattr_static(type(module), name, None), property):
            return  # the attributes that the property reads are noted
        shown = f"{path}.{name}" if path else name
        if isinstance(value, Tensor):
            if not holds_weights:  # torch's hooks compute weights
                raise self.refuse(f"reads {shown}, a tensor that is not a parameter")
        elif isinstance(value, types.MethodType):
            if value.__self__ is not module:
                raise self.refuse(f"calls {shown}, a method of another object or of its class")
        elif not is_constant(value) and not is_usable(value):
            raise self.refuse(f"reads {shown}, a {type(value).__name__}, whose changes cannot be detected")
        self.names.setdefault(path, set()).add(name)
        self._allowed[path, name] = value

    def fetched(self, path: str, name: str, value: Any) -> Any:
        """The value that a forward gets for a parameter, buffer or module. None is noted, as it may be set later."""
        if value is None:
            self.names.setdefault(path, set()).add(name)
        return value

    def basis(self, module: nn.Module, paths: Iterable[str]) -> Basis:
        """The basis of ``module``, whose copies ran, with its submodules at these paths. Raises LeftAlone."""
        code = self.code
        cells = [(place, name, value) for (place, name), value in code.cells.items()]
        try:
            parts = [self._part(module.get_submodule(path), path) for path in paths]
            functions, values = tuple(code.functions), tuple(code.globals.items())
            basis = Basis(tuple(parts), functions, values, tuple(cells), ties_of(module))
            reason = obstacle(basis, module)
        except Exception as error:  # from user classes and functions
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
                continue  # the children include it
            elif isinstance(value, types.MethodType):
                methods.append(name)
            elif not isinstance(value, Tensor):
                attributes.append((name, copied(value)))
        return Part(path, kind, children_of(module), tuple(attributes), tuple(methods), tuple(absent))


class Noting:
    """The first base of the class of a copy."""

    _notes: ClassVar[Notes]
    _notes_path: ClassVar[str]
    _notes_holds: ClassVar[bool] = False  # whether it is a layer with parameters of the attention

    def __init_subclass__(cls) -> None:
        """Keeps base classes from registering or refusing this subclass."""

    def __del__(self) -> None:
        """Does not run the ``__del__`` of the module's class."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "training":
            self._notes.reads_training = True
            if self._notes_path and is_user_code(sys._getframe(1)):
                raise self._notes.refuse(f"reads {self._notes_path}.training")
        elif name in _HIDDEN:
            if is_user_code(sys._getframe(1)):
                raise self._notes.refuse(f"reads {name}")
        elif name not in _OF_EVERY_MODULE and not name.startswith("_notes"):
            self._notes.note(self, self._notes_path, name, value, self._notes_holds)  # type: ignore[arg-type]
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            value = super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if is_user_code(sys._getframe(1)):
                raise self._notes.refuse(f"reads {name}, which does not exist") from None
            raise
        if isinstance(value, Tensor) and not (isinstance(value, nn.Parameter) or self._notes_holds):
            raise self._notes.refuse(f"uses its buffer {name}")
        # weights and biases of such layers are checked by other means
        return value if self._notes_holds else self._notes.fetched(self._notes_path, name, value)
