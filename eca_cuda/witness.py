# SPDX-License-Identifier: MIT
"""Sees what a forward asks of tensors, where its numbers need not show what it decides on.

A trial compares numbers, for a few inputs. It cannot judge a forward that goes another way for another size, or that
asks a tensor for a value: while a ``Witness`` is entered, such questions end the forward with the reason.
"""

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .python_code import OPERATIONS
from .trial import LeftAlone

_TENSOR: Any = Tensor
_SIZES = {_TENSOR.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement}
# Every rank and dtype that counts is tried, with gradients and without.
_ASKED_FREELY = {Tensor.dim, _TENSOR.ndim.__get__, _TENSOR.dtype.__get__, Tensor.is_floating_point}
_ASKED_FREELY |= {torch._C._set_grad_enabled}
_CASTS = {Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.type, Tensor.type_as}


class Witness(TorchFunctionMode):
    """While it is entered, sizes refuse to be compared, and questions are refused that tensors answer with a value.

    Args:
        channels: the one size that may be compared, with the same number: then ``fixes_channels`` becomes true.
        keeps_double: leave casts of float64 out, so that computing in float64 shows every other difference.
    """

    def __init__(self, channels: int, keeps_double: bool) -> None:
        super().__init__()
        self.channels = channels
        self.keeps_double = keeps_double
        self.fixes_channels = False
        self.objection: Optional[LeftAlone] = None

    def refuse(self, what: str) -> Any:
        """Ends the forward; ``objection`` remains where the forward catches exceptions."""
        self.objection = self.objection or LeftAlone(f"its forward {what}")
        raise self.objection

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.keeps_double:
            is_cast = function in _CASTS and (function is not Tensor.type or len(args) > 1)  # or it asks
            if is_cast and args[0].dtype == torch.float64:
                return args[0].clone()
            if getattr(kwargs.get("dtype"), "is_floating_point", False):
                kwargs = kwargs | {"dtype": torch.float64}
        if function in _SIZES:
            result = function(*args, **kwargs)
            if isinstance(args[0], nn.Parameter):
                return result
            return _Shape(_Size(s, self) for s in result) if isinstance(result, tuple) else _Size(result, self)
        if function not in _ASKED_FREELY:
            name = _name(function)
            if name.strip("_") not in OPERATIONS:
                shown = f"Tensor.{name}" if hasattr(Tensor, name) else f"torch's {name}"
                self.refuse(f"uses {shown}, which may do more than a trial shows")
            if name == "__getitem__" and _takes_a_part(*args):
                self.refuse("takes a part of a tensor, which may be all of it in a trial")
        result = function(*args, **kwargs)
        if function not in _ASKED_FREELY and not _are_tensors(result):
            self.refuse(f"asks for Tensor.{_name(function)}")
        return result


def _are_tensors(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return all(map(_are_tensors, result))
    return isinstance(result, Tensor)


def _name(function: Any) -> str:
    """The name of a function, or of the attribute that it gets or sets."""
    name = str(getattr(function, "__name__", function))
    return str(function.__self__.__name__) if name == "__get__" else name


def _takes_a_part(tensor: Tensor, index: Any) -> bool:
    """Whether a slice with bounds goes over more than three elements: the trial's maps may be too small to show it."""
    items = index if isinstance(index, tuple) else (index,)
    used = sum(item is not None and item is not ... for item in items)
    dim = 0
    for item in items:
        if item is ...:
            dim += tensor.dim() - used
        elif item is not None:
            bounded = isinstance(item, slice) and any(b is not None for b in (item.start, item.stop, item.step))
            if (bounded or not isinstance(item, (slice, int))) and tensor.shape[dim] > 3:
                return True
            dim += 1
    return False


class _Shape(tuple[Any, ...]):
    """A shape whose product is not known either."""

    def numel(self) -> Any:
        return math.prod(self)

    __slots__ = ()


class _Size(int):
    """The size of a tensor, or a number computed from such."""

    witness: Witness

    def __new__(cls, value: int, witness: Witness) -> "_Size":
        size = super().__new__(cls, value)
        size.witness = witness
        return size

    def _refuse(self, *_: Any) -> Any:
        self.witness.refuse("compares sizes, or computes with them")

    def __eq__(self, other: Any) -> Any:
        if type(other) is int and int.__eq__(self, other) and other == self.witness.channels:
            self.witness.fixes_channels = True
            return True
        return self._refuse()

    def __ne__(self, other: Any) -> Any:
        return not self == other

    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __hash__ = _refuse
    __int__ = __float__ = __index__ = __round__ = __trunc__ = __str__ = __repr__ = __format__ = _refuse
    __truediv__ = __divmod__ = __rdivmod__ = __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = _refuse
    __invert__ = __abs__ = bit_length = _refuse


def _computed(name: str) -> Callable[..., Any]:
    def operation(self: _Size, *others: Any) -> Any:
        result = getattr(int, name)(self, *others)
        if result is NotImplemented and isinstance(others[0], float):
            self._refuse()
        return _Size(result, self.witness) if type(result) is int else result

    return operation


for _operator in ("add", "sub", "mul", "floordiv", "mod", "pow"):
    for _method in (f"__{_operator}__", f"__r{_operator}__"):
        setattr(_Size, _method, _computed(_method))
_Size.__neg__ = _computed("__neg__")  # type: ignore[method-assign]
