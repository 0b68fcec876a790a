# SPDX-License-Identifier: MIT
"""The rules for valid arguments: every message names the argument, what was expected and what was given.

The operators check their tensors themselves, with terse errors. An eager call runs this file only after an operator
has refused it, so a valid call pays nothing for good messages. Traced calls, ``lengths`` and ``eca_`` are checked here
first.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, Optional, TypeVar

import torch
from torch import Tensor

from ._ext import _C

PADDING_MODES = ("zeros", "circular")
GATES = ("sigmoid", "hard_sigmoid")
ACTIVATIONS = (None, "relu")
CHANNELS_DIMS = (1, -1)
LENGTH_DTYPES = (torch.int32, torch.int64)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Parameter(NamedTuple):
    """A parameter as the compiled library describes it (csrc/gates/gate.h)."""

    name: str
    sizes: tuple[Any, ...]  # numbers, or "C", "k" (odd), "hidden" and "C or 1" (1 with cross_channel)
    optional: bool


# By variant, in the order of its function's arguments.
PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    name: tuple(Parameter(*described) for described in parameters) for name, parameters in _C.VARIANTS.items()
}

_torch: Any = torch._C
_Check = TypeVar("_Check", bound=Callable[..., None])


def _untraced(check: _Check) -> _Check:
    """Pauses torch.jit.trace, which turns sizes into tensors and warns if they are compared."""

    @functools.wraps(check)
    def checked(*arguments: object) -> None:
        trace = _torch._get_tracing_state()
        if trace is None:
            return check(*arguments)
        _torch._set_tracing_state(None)
        try:
            return check(*arguments)
        finally:
            _torch._set_tracing_state(trace)

    return checked  # type: ignore[return-value]  # mypy: wraps() forgets


def check_options(padding_mode: object, gate: object, activation: object) -> None:
    """Raise ValueError unless the three options have known values."""
    _check_option("padding_mode", padding_mode, PADDING_MODES)
    _check_option("gate", gate, GATES)
    _check_option("activation", activation, ACTIVATIONS)


def check_channels_dim(channels_dim: object) -> None:
    """Raise ValueError unless it is 1 or -1."""
    _check_option("channels_dim", channels_dim, CHANNELS_DIMS)


def integer(name: str, value: Any) -> int:
    """``value``, if it is an integer of any library; else TypeError."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name}: expected an integer, got {value!r}")


def channels(name: str, value: Any) -> int:
    """``value``, if it is a number of channels; else TypeError or ValueError."""
    c = integer(name, value)
    if c < 1:
        raise ValueError(f"{name}: expected at least 1 channel, got {c}")
    return c


def number(name: str, value: Any) -> float:
    """``value``, if it is a finite number; else TypeError or ValueError."""
    # Up to torch 2.10 Dynamo can't trace hasattr of a symbol.
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "__float__")):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if number - number != 0:  # math.isfinite, which Dynamo can't trace of a symbol
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return number


def epsilon(value: Any, training: bool) -> float:
    """``value``, if torch's batch norm would accept it as eps; else TypeError or ValueError."""
    eps = number("eps", value)
    if eps < 0 or (training and eps == 0):
        _refuse("eps", "a positive number for training=True" if training else "no negative number", f"{value}")
    return eps


def flag(name: str, value: Any) -> bool:
    """``value``, if it is True or False; else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


@_untraced
def check(
    name: str,
    x: Tensor,
    parameters: Sequence[Optional[Tensor]],
    residual: Optional[Tensor],
    circular: bool,
    cross_channel: bool,
) -> None:
    """Raise TypeError or ValueError unless the variant called ``name`` accepts these tensors."""
    check_maps(x, residual)
    described = list(zip(PARAMETERS[name], parameters, strict=True))
    _check_parameters(x, {p.name: t for p, t in described if not (t is None and p.optional)})
    known = sizes(x.shape[1], cross_channel)
    for parameter, t in described:
        if t is not None:
            _check_against(parameter, t, known, circular, cross_channel)


@_untraced
def check_maps(x: Tensor, residual: Optional[Tensor]) -> None:
    """Raise TypeError or ValueError unless every variant accepts ``x`` and ``residual``."""
    _check_x(x)
    if residual is not None:
        _check_like_x("residual", residual, x)


@_untraced
def check_norm(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    training: bool,
) -> None:
    """Raise TypeError or ValueError unless batch norm accepts these tensors with this ``x``."""
    affine = {"norm_weight": weight, "norm_bias": bias}
    running = {"running_mean": running_mean, "running_var": running_var}
    for group in (affine, running):
        given = {name: t for name, t in group.items() if t is not None}
        _check_parameters(x, given)
        for name, t in given.items():
            _check_shape(name, t, (x.shape[1],))
    for name, statistic in running.items():
        if statistic is not None and statistic.requires_grad and torch.is_grad_enabled():
            _refuse(name, "no gradient to be wanted", "requires_grad=True")
    for name, other in (("running_mean", running_var), ("running_var", running_mean)):
        if running[name] is None and not (training and other is None):
            because = "for training=False" if not training else "like the other running statistic"
            raise TypeError(f"{name}: expected a Tensor {because}, got None")
    if training and math.prod(x.shape) == x.shape[1]:
        _refuse("x", "more than one value per channel for training=True", f"shape {tuple(x.shape)}")


def check_saved(
    grad_y: Tensor, x: Tensor, mean: Tensor, signs: Optional[Tensor], relu: bool, grad_residual: bool
) -> None:
    """Raise TypeError or ValueError unless a backward operator accepts these tensors with this ``x``."""
    _check_like_x("grad_y", grad_y, x)
    _check_tensor("mean", mean)
    _check_shape("mean", mean, tuple(x.shape[:2]))
    _check_device("mean", mean, x)
    if mean.dtype != accumulator(x.dtype):
        raise TypeError(f"mean: expected {accumulator(x.dtype)} for x of {x.dtype}, got {mean.dtype}")
    if not mean.is_contiguous():
        _refuse("mean", "a contiguous tensor", f"strides {mean.stride()}")
    if (signs is not None) != relu or (grad_residual and not relu):
        _refuse("flags", "RELU with signs and with GRAD_RESIDUAL", "one without the other")
    if signs is not None:
        _check_tensor("signs", signs)
        _check_shape("signs", signs, signs_shape(x))
        _check_device("signs", signs, x)
        if signs.dtype != torch.uint8:
            raise TypeError(f"signs: expected torch.uint8, got {signs.dtype}")


def signs_shape(x: Tensor) -> tuple[int, int]:
    """The shape of the signs of a map like ``x`` (csrc/problem.h): a row of bytes for each sample."""
    per_byte = 16 // x.element_size() if x.device.type == "cuda" else 8
    return x.shape[0], (math.prod(x.shape[1:]) + per_byte - 1) // per_byte


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of this dtype are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_channels_last(
    channels_dim: object, x: Tensor, residual: Optional[Tensor] = None, lengths: Optional[Tensor] = None
) -> None:
    """Raise ValueError or TypeError for errors that messages must describe before channels move to dimension 1."""
    check_channels_dim(channels_dim)
    _check_x(x, "[N, *spatial, C]")
    if residual is not None:
        _check_like_x("residual", residual, x)
    if lengths is not None and x.dim() != 3:
        _refuse("lengths", "x of shape [N, L, C]", f"x of shape {tuple(x.shape)}")


def check_device(device: torch.device, cuda_toolkit: str) -> None:
    """Raise ValueError for a device that this build has no kernels for."""
    if device.type == "cuda" and not cuda_toolkit:
        raise ValueError(
            f"x: expected a CPU tensor, got {device}: eca_cuda was built without CUDA kernels, "
            "python -m eca_cuda.info says why"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"x: expected a CPU or CUDA tensor, got {device}")


@_untraced
def check_lengths(lengths: object, x: Tensor, has_values: bool) -> None:
    """Raise TypeError or ValueError unless these are lengths of the samples of ``x``."""
    lengths = _check_tensor("lengths", lengths)
    if x.dim() != 3:
        _refuse("lengths", "x of shape [N, C, L]", f"x of shape {tuple(x.shape)}")
    if lengths.dtype not in LENGTH_DTYPES:
        raise TypeError(f"lengths: expected int32 or int64, got {lengths.dtype}")
    _check_shape("lengths", lengths, (x.shape[0],))
    _check_device("lengths", lengths, x)
    if has_values and lengths.device.type == "cpu" and lengths.numel():
        least, most = (int(t) for t in lengths.aminmax())
        if least < 0 or most > x.shape[2]:
            _refuse("lengths", f"values in [0, {x.shape[2]}]", f"values in [{least}, {most}]")


def sizes(c: int, cross_channel: bool) -> dict[Any, int]:
    """The values of the symbolic sizes in parameter shapes that depend on the call alone, not on the parameters."""
    return {"C": c, "C or 1": 1 if cross_channel else c}


def _check_against(parameter: Parameter, t: Tensor, known: dict[Any, int], circular: bool, cross_channel: bool) -> None:
    """Raise ValueError unless ``t`` has the shape described; the first tensor with a "k" or "hidden" sets it."""
    if circular and not cross_channel and parameter.sizes[0] == "C or 1":
        raise ValueError("padding_mode: 'circular' needs cross_channel=True, got cross_channel=False")
    expected = [known.get(size, size) for size in parameter.sizes]
    fits = t.dim() == len(expected)
    for size, name in zip(t.shape, expected, strict=False):
        fits = fits and (isinstance(name, str) or size == name) and not (name == "k" and size % 2 == 0)
    if not fits:
        shape = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
        odd = " with k odd" if "k" in expected else ""
        _refuse(parameter.name, f"shape ({shape}){odd}", f"shape {tuple(t.shape)}")
    known |= {name: size for name, size in zip(expected, t.shape, strict=True) if isinstance(name, str)}
    if circular and t.dim() == 3 and t.shape[2] // 2 > known["C"]:
        _refuse(parameter.name, f"k // 2 <= {known['C']} channels for circular padding", f"k = {t.shape[2]}")


def _check_like_x(name: str, value: object, x: Tensor) -> None:
    tensor = _check_tensor(name, value)
    _check_shape(name, tensor, tuple(x.shape))
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")
    _check_device(name, tensor, x)


def _check_x(x: Tensor, dimensions: str = "[N, C, *spatial]") -> None:
    _check_tensor("x", x)
    if not 3 <= x.dim() <= 5:
        _refuse("x", f"shape {dimensions} with 1 to 3 spatial dimensions", f"shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected float32, float64, float16 or bfloat16, got {x.dtype}")


def _check_parameters(x: Tensor, parameters: dict[str, Any]) -> None:
    allowed = {x.dtype} | ({torch.float32} if x.dtype in (torch.float16, torch.bfloat16) else set())
    first: Optional[torch.dtype] = None
    for name, parameter in parameters.items():
        parameter = _check_tensor(name, parameter)
        _check_device(name, parameter, x)
        if parameter.dtype not in allowed:
            expected = " or ".join(sorted(map(str, allowed)))
            raise TypeError(f"{name}: expected {expected} for x of {x.dtype}, got {parameter.dtype}")
        first = first or parameter.dtype
        if parameter.dtype != first:
            raise TypeError(f"{name}: expected {first} like the other parameters, got {parameter.dtype}")


def _check_option(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        _refuse(name, "a dense (strided) tensor", "a nested one" if value.is_nested else f"layout {value.layout}")
    return value


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        _refuse(name, f"shape {shape}", f"shape {tuple(tensor.shape)}")


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        _refuse(name, f"a tensor on the device of x, {x.device}", f"{tensor.device}")


def _refuse(name: str, expected: str, got: str) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, got {got}")
