# SPDX-License-Identifier: MIT
"""Watches what a forward asks of tensors.

A trial compares numbers for a few inputs. It cannot judge a forward that branches on a size or on the value of a
tensor. Under a ``Witness``, such a question ends the forward with the reason. The witness also simulates other dtypes
and CUDA's autocast, which a trial on the CPU in float64 lacks.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .python_code import OPERATIONS
from .trial import AUTOCAST_DTYPE, LeftAlone

_TENSOR: Any = Tensor
_SIZES = {_TENSOR.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement}
_DTYPE = _TENSOR.dtype.__get__
# A trial covers every rank and dtype, with gradients and without.
_ASKED_FREELY = {Tensor.dim, _TENSOR.ndim.__get__, _DTYPE, Tensor.is_floating_point, torch._C._set_grad_enabled}
# The functions that may take sizes: those that shape a tensor, and those that scale one.
_SHAPING = {"view", "reshape", "expand", "unflatten", "broadcast_to", "repeat"}
_SHAPING |= {"avg_pool1d", "avg_pool2d", "avg_pool3d"}  # the windows are sizes
_SCALING = {"mul", "multiply", "imul", "rmul", "div", "truediv", "true_divide", "itruediv", "rdiv", "rtruediv"}
# The functions that CUDA's autocast computes in float32, and those that it computes in its own dtype.
_IN_FLOAT32 = {"exp", "norm", "normalize", "pow", "prod", "softmax", "softplus", "square", "sum"}
_IN_FLOAT32 |= {"rdiv", "rpow", "rtruediv"}
_IN_LOWER = {"bmm", "conv1d", "einsum", "linear", "matmul", "mv"}
_CASTS = {Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.type, Tensor.type_as}


class Witness(TorchFunctionMode):
    """Refuses comparisons of sizes, and functions that return something other than tensors.

    Args:
        channels: the size that may be compared with an equal number; ``fixes_channels`` then becomes true.
        keeps_double: skip casts of float64, so that float64 shows every other difference.
        reported_dtype: the dtype that tensors claim to have, so that a forward's branch for it runs in float64.
    """

    def __init__(self, channels: int, keeps_double: bool, reported_dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.channels = channels
        self.keeps_double = keeps_double
        self.reported_dtype = reported_dtype
        self.fixes_channels = self.asks_for_dtype = False
        self.objection: Optional[str] = None

    def refuse(self, what: str) -> Any:
        """End the forward; ``objection`` is kept in case the forward catches exceptions."""
        self.objection = self.objection or f"its forward {what}"
        raise LeftAlone(self.objection)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.keeps_double:
            is_cast = function in _CASTS and (
                function is not Tensor.type or len(args) > 1
            )  # without arguments it is a question
            if is_cast and args[0].dtype == torch.float64:
                return args[0].clone()
            if getattr(kwargs.get("dtype"), "is_floating_point", False):
                kwargs = kwargs | {"dtype": torch.float64}
        if function in _SIZES:
            args = _plain(args)
            result = function(*args, **kwargs)
            if isinstance(args[0], nn.Parameter):
                return result
            return _Shape(_Size(s, self) for s in result) if isinstance(result, tuple) else _Size(result, self)
        if sizes := _sizes_in((*args, *kwargs.values())):
            name = _name(function).strip("_")
            if name not in _SHAPING and not (name in _SCALING and all(_facts(size)[2] for size in sizes)):
                self.refuse(f"computes with sizes, in {_name(function)}")
            args, kwargs = _plain(args), {key: _plain(value) for key, value in kwargs.items()}
        if function not in _ASKED_FREELY:
            name = _name(function)
            if name.strip("_") not in OPERATIONS:
                shown = f"Tensor.{name}" if hasattr(Tensor, name) else f"torch's {name}"
                self.refuse(f"uses {shown}, which may do more than a trial can show")
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = _autocast(name.strip("_"), args, kwargs)
            if name == "__getitem__" and _takes_a_part(*args):
                self.refuse("slices a tensor, which may select all of it in a trial")
        result = function(*args, **kwargs)
        if function == _DTYPE:
            self.asks_for_dtype = True
            return self.reported_dtype or result
        if function not in _ASKED_FREELY and not _are_tensors(result):
            self.refuse(f"reads Tensor.{_name(function)}")
        return result


def _autocast(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as CUDA's autocast casts them."""
    dtype = torch.float32 if name in _IN_FLOAT32 else AUTOCAST_DTYPE if name in _IN_LOWER else None

    def cast(value: Any) -> Any:
        is_cast = dtype and isinstance(value, Tensor) and value.dtype in (torch.float32, AUTOCAST_DTYPE)
        return value.to(dtype) if is_cast else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}


def _are_tensors(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return all(map(_are_tensors, result))
    return isinstance(result, Tensor)


def _name(function: Any) -> str:
    """The name of a function, or of the attribute that it gets or sets."""
    name = str(getattr(function, "__name__", function))
    return str(function.__self__.__name__) if name == "__get__" else name


def _takes_a_part(tensor: Tensor, index: Any) -> bool:
    """Whether a bounded slice is taken of more than three elements, which may be all elements in a trial."""
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
    """A shape of ``_Size``, whose product is a ``_Size`` too."""

    __slots__ = ()

    def numel(self) -> Any:
        return math.prod(self)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Shape(found) if isinstance(key, slice) else found


class _Size(torch.SymInt):
    """The size of a tensor, or a product or quotient of sizes, whose value cannot be read.

    It is not an ``int``, as C code reads those directly: ``range``, ``math.log``, an index, a comparison with floats.
    torch's functions accept it as a size, as in torch's own tracing, and pass it to the witness.
    """

    def __init__(self, value: Any, witness: Witness, is_exact: bool = True) -> None:
        object.__setattr__(self, "_facts", (value, witness, is_exact))

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__torch_"):  # a question of torch
            raise AttributeError(name)
        return int if name == "__class__" else _refuse(self)  # so isinstance(size, int) is true

    def __eq__(self, other: Any) -> Any:
        value, witness, _ = _facts(self)
        if type(other) is int and value == other == witness.channels:
            witness.fixes_channels = True
            return True
        return _refuse(self)

    def __ne__(self, other: Any) -> Any:
        return not self == other

    def __mul__(self, other: Any) -> Any:
        return _computed(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _computed(operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return _computed(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _computed(operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Any:
        if _value(self) % _value(other) != 0:  # the result depends on the size
            _refuse(self)
        return _computed(operator.floordiv, self, other)


def _facts(size: _Size) -> tuple[Any, Witness, bool]:
    facts: tuple[Any, Witness, bool] = object.__getattribute__(size, "_facts")
    return facts


def _value(x: Any) -> Any:
    return _facts(x)[0] if type(x) is _Size else x


def _refuse(size: _Size, *_: Any) -> Any:
    _facts(size)[1].refuse("compares sizes, or computes with them")


def _computed(operation: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    sizes = [_facts(x) for x in (a, b) if type(x) is _Size]
    if not all(type(x) in (int, float, _Size) for x in (a, b)):
        return NotImplemented
    is_exact = operation is not operator.floordiv and all(facts[2] for facts in sizes)
    return _Size(operation(_value(a), _value(b)), sizes[0][1], is_exact)


_REFUSED = """
    lt le gt ge hash bool int float index round trunc floor ceil str repr format add radd sub rsub rfloordiv mod rmod
    divmod rdivmod pow rpow lshift rlshift rshift rrshift and rand or ror xor rxor invert neg pos abs
"""
for _operator in _REFUSED.split():
    setattr(_Size, f"__{_operator}__", _refuse)


def _sizes_in(value: Any) -> list[_Size]:
    if isinstance(value, (tuple, list)):
        return [size for element in value for size in _sizes_in(element)]
    return [value] if type(value) is _Size else []


def _plain(value: Any) -> Any:
    """``value`` with plain numbers in place of sizes."""
    if isinstance(value, (tuple, list)) and _sizes_in(value):
        return [*map(_plain, value)] if isinstance(value, list) else tuple(map(_plain, value))
    return _value(value)
