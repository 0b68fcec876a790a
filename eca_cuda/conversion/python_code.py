# SPDX-License-Identifier: MIT
"""What the Python code of a forward may use: known operations on tensors, and values that can be compared later.

A trial shows what code computes for a few inputs. Other effects (printing, reading a mode of torch or a setting of the
user's) are found by reading the bytecode of each function before it first runs.
"""

import _lsprof
import _operator
import builtins
import dis
import enum
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .places import WRAPPED, Place, cell, function_of
from .swap import own_class
from .trial import PACKAGE, copied

# Functions of torch and methods of tensors, with or without underscores, whose only effect is their result.
OPERATIONS = set(
    """
    H T abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d add amax amin avg_pool1d avg_pool2d avg_pool3d bfloat16 bmm broadcast_to cat clamp clone
    concat contiguous conv1d detach div dot double einsum eq exp expand expand_as flatten flip float floordiv ge
    getitem gt half hardsigmoid hardtanh iadd imul isub itruediv le linear logical_and lt mT matmul max maximum
    mean min minimum movedim mul multiply mv nan_to_num ne neg norm normalize pad permute pow prod radd rdiv
    relu relu6 repeat reshape reshape_as rmul rpow rsub rtruediv select sigmoid silu softmax softplus softsign sqrt
    square squeeze stack std sub sum swapaxes swapdims t tanh to transpose true_divide truediv type type_as
    unflatten unsqueeze var vdot view view_as weight_norm where
    """.split()  # noqa: SIM905
)
_BUILTINS = set(
    """
    AssertionError Exception IndexError NotImplementedError RuntimeError TypeError ValueError abs all any bool
    dict enumerate float getattr int isinstance len list map max min range reversed slice sorted sum super tuple
    zip
    """.split()  # noqa: SIM905
)
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(...))
_MODULE = types.ModuleType
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_MOST_STEPS = 8  # the deepest nesting of decorators and closures
_TORCH_CLASSES = (nn.Module, torch.autocast, torch.no_grad, torch.enable_grad)


def is_constant(value: Any) -> bool:
    """Whether ``==`` with an earlier copy detects every change. Instances of subclasses may hold more."""
    if type(value) is dict:
        return all(map(is_constant, value.values()))
    if type(value) in (tuple, list, set, frozenset, torch.Size):
        return all(map(is_constant, value))
    return (type(value) in _CONSTANTS and value == value) or isinstance(value, enum.Enum)


def is_mutable(value: Any) -> bool:
    """Whether a forward could change ``value`` in place."""
    return isinstance(value, (list, dict, set)) or (isinstance(value, tuple) and any(map(is_mutable, value)))


def never_read(function: Any) -> set[str]:
    """The arguments that the code of a function does not read; empty for a decorated function."""
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return set()
    code = function.__code__
    read: set[Any] = set(code.co_cellvars)
    for step in dis.get_instructions(code):
        if "LOAD" in step.opname:
            read.update(step.argval if isinstance(step.argval, tuple) else (step.argval,))
    return {*code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]} - read


def is_operation(value: Any) -> bool:
    """Whether it is a function of torch or of Python's math or operator modules that only computes."""
    owner = getattr(value, "__self__", None)
    if owner in (math, _operator):
        return True
    module = getattr(value, "__module__", None) or getattr(
        owner, "__name__" if type(owner) is _MODULE else "__module__", ""
    )
    is_of_torch = str(module).startswith("torch") or type(value).__module__.startswith("torch")
    return is_of_torch and not isinstance(value, type) and str(getattr(value, "__name__", "")).strip("_") in OPERATIONS


class Code:
    """The user's functions that ran, their places, and the globals and cells that they read.

    Args:
        model: functions of the packages that its classes come from are read; those of other packages are trusted.
        refuse: returns the exception to raise for what is wrong with a function.
        may_ask_for_types: whether ``isinstance`` is allowed. It is not for a block, whose modules may be replaced.
    """

    def __init__(self, model: nn.Module, refuse: Callable[[str], Any], may_ask_for_types: bool) -> None:
        self.refuse = refuse
        self.builtins = _BUILTINS if may_ask_for_types else _BUILTINS - {"isinstance"}
        self.kinds = {base for m in model.modules() for base in own_class(m).__mro__ if _is_of_user(base.__module__)}
        self.packages = {kind.__module__.partition(".")[0] for kind in self.kinds}
        self.functions: set[Place] = set()
        self.globals: dict[Place, Any] = {}
        self.cells: dict[tuple[Place, str], Any] = {}
        self._known: dict[types.CodeType, dict[Place, types.FunctionType]] = {}  # one code may have several functions
        self.codes: set[types.CodeType] = set()
        self._seen: dict[int, types.CodeType] = {}
        for kind in self.kinds:
            for name, value in vars(kind).items():
                self._know(Place(kind, name), value)
        for m in model.modules():
            for value in vars(m).values():
                if isinstance(value, types.FunctionType):
                    self._know(Place(value, ""), value)

    def _know(self, place: Place, value: Any) -> None:
        """Register the function at ``place``, and the functions that it wraps."""
        function = function_of(value)
        if not isinstance(function, types.FunctionType) or place in self._known.get(function.__code__, ()):
            return
        self._known.setdefault(function.__code__, {})[place] = function
        package = str(function.__module__).partition(".")[0]
        if _is_of_user(package) and package not in self.packages:
            self.packages.add(package)
            self._seen.clear()
        if function.__code__ in self.codes:
            self._read_enclosed(place, function)
        if len(place.steps) < _MOST_STEPS:
            self._know(place.then(WRAPPED), getattr(function, WRAPPED, None))

    @contextmanager
    def read(self) -> Iterator[None]:
        """In the body, read every function before it runs."""

        def look(frame: types.FrameType, event: str, _: Any) -> None:
            if event != "call" or id(code := frame.f_code) in self._seen:  # by id, as hashing a code object is slow
                return
            self._seen[id(code)] = code
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if package not in self.packages or code in self.codes:
                return
            is_inner = any(code in outer.co_consts for outer in self.codes)
            self.codes.add(code)
            known = self._known.get(code, {})
            if not known and not is_inner:
                raise self.refuse(
                    f"calls {code.co_qualname if sys.version_info >= (3, 11) else code.co_name}, "
                    "which is not found among its classes and globals"
                )
            enclosed = {name for place, function in [*known.items()] for name in self._read_enclosed(place, function)}
            self._read_function(code, frame.f_globals, enclosed)

        before: Any = sys.getprofile()
        sys.setprofile(look)
        try:
            yield
        finally:
            sys.setprofile(None if isinstance(before, _lsprof.Profiler) else before)
            if isinstance(before, _lsprof.Profiler):  # cProfile up to Python 3.11: sys.setprofile cannot restore it
                before.enable()

    def _read_enclosed(self, place: Place, function: types.FunctionType) -> list[str]:
        """Check and record the defaults and cells of a function. Returns the names of its cells."""
        names = [name for name in function.__code__.co_freevars if name != "__class__"]
        if place in self.functions:
            return names
        self.functions.add(place)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._check(value, "a default argument")
        for name in names:
            value = self._check(cell(function, name).cell_contents, name)
            self.cells[place, name] = copied(value)
            if len(place.steps) >= _MOST_STEPS:
                raise self.refuse(f"uses {name}, which is nested in more than {_MOST_STEPS} functions")
            self._know(place.then(name), value)
        return names

    def _read_function(self, code: types.CodeType, namespace: dict[str, Any], enclosed: set[str]) -> None:
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        names = [step.opname for step in steps]
        if "SETUP_FINALLY" in names or names.count("PUSH_EXC_INFO") > names.count("WITH_EXCEPT_START"):
            raise self.refuse("catches exceptions")
        for i, step in enumerate(steps):
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
                step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in enclosed
            ):
                raise self.refuse(f"sets {step.argval}, which is not a local variable")
            if step.opname in ("STORE_ATTR", "DELETE_ATTR"):
                raise self.refuse(f"sets attributes: {step.argval}")
            if step.opname in ("IMPORT_NAME", "LOAD_BUILD_CLASS"):
                raise self.refuse("imports a module" if step.opname == "IMPORT_NAME" else "defines a class")
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                is_of_super = i > 0 and steps[i - 1].argval == "super"
                self._read_global(step.argval, namespace, is_of_super, steps[i + 1 :])
                if step.argval == "super":
                    self._check_super(steps[i + 1 :])

    def _read_global(self, name: str, namespace: dict[str, Any], is_of_super: bool, later: Any) -> None:
        if name not in namespace:
            if name not in self.builtins and hasattr(builtins, name):
                raise self.refuse(f"uses {name}")
            return
        value, shown = namespace[name], name
        for step in later:
            if not isinstance(value, _MODULE) or step.opname not in _ATTRIBUTES:
                break
            if not (value in (math, operator) or value.__name__.partition(".")[0] == "torch"):
                break
            value, shown = getattr(value, step.argval, None), f"{shown}.{step.argval}"
        if is_of_super and value in self.kinds:
            return
        self._check(value, shown)
        if (
            isinstance(value, types.FunctionType)
            and later
            and later[0].opname in _ATTRIBUTES
            and not is_operation(value)
        ):
            raise self.refuse(f"reads {name}.{later[0].argval}")
        if "." not in shown and not is_operation(value) and not _is_class_of_torch(value):
            place = str(namespace.get("__name__")), name
            if vars(sys.modules.get(place[0], types)) is not namespace:
                raise self.refuse(f"reads {name}, of a Python module that cannot be imported")
            self.globals[Place(*place)] = copied(value)
            self._know(Place(*place), value)

    def _check_super(self, later: Any) -> None:
        """Allow ``super()`` only for calling a method, as other attributes of it are not noted."""
        name = next((s.argval for s in later if s.opname in _ATTRIBUTES or "SUPER" in s.opname), None)
        if not any(isinstance(getattr(kind, str(name), None), types.FunctionType) for kind in self.kinds):
            raise self.refuse(f"reads super().{name}")

    def _check(self, value: Any, shown: str) -> Any:
        """Return ``value`` if the code may use it, else raise."""
        if (is_constant(value) and not is_mutable(value)) or is_operation(value) or _is_class_of_torch(value):
            return value
        if isinstance(value, types.FunctionType) and _is_of_user(value.__module__):
            return value
        kind = "class" if isinstance(value, type) else type(value).__name__
        raise self.refuse(f"uses {shown}, a {kind}, which may do more than a trial can show")


def is_usable(value: Any) -> bool:
    """Whether a forward may use this non-constant: an operation, a class of torch, or a function, which is read."""
    return is_operation(value) or _is_class_of_torch(value) or isinstance(value, types.FunctionType)


def _is_of_user(module: Any) -> bool:
    return str(module).partition(".")[0] not in ("torch", "builtins", PACKAGE)


def _is_class_of_torch(value: Any) -> bool:
    if not isinstance(value, type):
        return False
    is_known = value is torch.Tensor or issubclass(value, _TORCH_CLASSES)
    return is_known and not _is_of_user(value.__module__)
