# SPDX-License-Identifier: MIT
"""Calls with one bad argument each, and the expected error messages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eca_cuda.testing import BIDIRECTIONAL, ECA, MULTI_KERNEL, Variant, make_x

CROSS = {"cross_channel": True}
X = make_x((2, 6, 3, 5))


@dataclass(frozen=True)
class Bad:
    """A valid call of ``variant`` except for ``replace`` (by position) and ``options``."""

    variant: Variant
    replace: dict[int, Any]
    options: dict[str, Any]
    error: type[Exception]
    message: str
    shape_options: dict[str, Any] = field(default_factory=dict)

    def arguments(self, convert: Callable[[Tensor], Tensor] = lambda t: t) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, with every tensor among them converted."""
        positional = [X, *self.variant.make_parameters(6, **self.shape_options)]
        for position, value in self.replace.items():
            positional[position] = value

        def converted(value: Any) -> Any:
            return convert(value) if isinstance(value, Tensor) else value

        return [*map(converted, positional)], {name: converted(value) for name, value in self.options.items()}

    def call(self, convert: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
        positional, keyword = self.arguments(convert)
        return self.variant.function(*positional, **keyword)


def eca(replace: dict[int, Any], error: type[Exception], message: str, **options: Any) -> Bad:
    return Bad(ECA, replace, options, error, message, {"bias": True})


def multi_kernel(replace: dict[int, Any], error: type[Exception], message: str, **options: Any) -> Bad:
    return Bad(MULTI_KERNEL, replace, options, error, message, CROSS if "cross_channel" in options else {})


def bidirectional(replace: dict[int, Any], error: type[Exception], message: str, **options: Any) -> Bad:
    return Bad(BIDIRECTIONAL, replace, options, error, message, {"hidden": 2})


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


RANK = "x: expected shape [N, C, *spatial] with 1 to 3 spatial dimensions, got shape "
FLOATS = "x: expected float32, float64, float16 or bfloat16, got "

BAD = {
    "x-rank2": eca({0: ones(2, 6)}, ValueError, RANK + "(2, 6)"),
    "x-rank6": multi_kernel({0: ones(2, 6, 1, 1, 1, 1)}, ValueError, RANK + "(2, 6, 1, 1, 1, 1)"),
    "x-rank0": bidirectional({0: ones()}, ValueError, RANK + "()"),
    "x-integer": eca({0: X.long()}, TypeError, FLOATS + "torch.int64"),
    "x-bool": multi_kernel({0: X.bool()}, TypeError, FLOATS + "torch.bool"),
    "x-complex": bidirectional({0: X.to(torch.complex64)}, TypeError, FLOATS + "torch.complex64"),
    "x-float8": eca({0: X.to(torch.float8_e5m2)}, TypeError, FLOATS + "torch.float8_e5m2"),
    "x-list": eca({0: [[[1.0]]]}, TypeError, "x: expected a Tensor, got list"),
    "x-none": multi_kernel({0: None}, TypeError, "x: expected a Tensor, got NoneType"),
    "weight-float": eca({1: 1.0}, TypeError, "weight: expected a Tensor, got float"),
    "weight-even": eca(
        {1: ones(1, 1, 4)}, ValueError, "weight: expected shape (1, 1, k) with k odd, got shape (1, 1, 4)"
    ),
    "weight-empty": eca(
        {1: ones(1, 1, 0)}, ValueError, "weight: expected shape (1, 1, k) with k odd, got shape (1, 1, 0)"
    ),
    "weight-flat": eca({1: ones(3)}, ValueError, "weight: expected shape (1, 1, k) with k odd, got shape (3,)"),
    "weight-groups": eca(
        {1: ones(6, 1, 3)}, ValueError, "weight: expected shape (1, 1, k) with k odd, got shape (6, 1, 3)"
    ),
    "weight-dtype": eca(
        {1: ones(1, 1, 3, dtype=torch.float64)},
        TypeError,
        "weight: expected torch.float32 for x of torch.float32, got torch.float64",
    ),
    "weight-other-half": eca(
        {0: X.half(), 1: ones(1, 1, 3, dtype=torch.bfloat16)},
        TypeError,
        "weight: expected torch.float16 or torch.float32 for x of torch.float16, got torch.bfloat16",
    ),
    "bias-shape": eca({2: ones(6)}, ValueError, "bias: expected shape (1,), got shape (6,)"),
    "bias-dtype": eca(
        {0: X.half(), 2: ones(1, dtype=torch.half)},
        TypeError,
        "bias: expected torch.float32 like the other parameters, got torch.float16",
    ),
    "circular-k": eca(
        {1: ones(1, 1, 15)},
        ValueError,
        "weight: expected k // 2 <= 6 channels for circular padding, got k = 15",
        padding_mode="circular",
    ),
    "padding_mode": eca(
        {}, ValueError, "padding_mode: expected one of 'zeros', 'circular', got 'reflect'", padding_mode="reflect"
    ),
    "gate": multi_kernel({}, ValueError, "gate: expected one of 'sigmoid', 'hard_sigmoid', got 'tanh'", gate="tanh"),
    "activation": bidirectional(
        {}, ValueError, "activation: expected one of None, 'relu', got 'gelu'", activation="gelu"
    ),
    "residual-shape": eca(
        {},
        ValueError,
        "residual: expected shape (2, 6, 3, 5), got shape (6, 3, 5)",
        residual=ones(6, 3, 5),
    ),
    "residual-dtype": multi_kernel(
        {}, TypeError, "residual: expected the dtype of x, torch.float32, got torch.float16", residual=X.half()
    ),
    "residual-number": bidirectional({}, TypeError, "residual: expected a Tensor, got int", residual=1),
    "weight3-shape": multi_kernel(
        {1: ones(1, 1, 3)}, ValueError, "weight3: expected shape (6, 1, 3), got shape (1, 1, 3)"
    ),
    "weight5-shape": multi_kernel(
        {2: ones(6, 1, 3)}, ValueError, "weight5: expected shape (6, 1, 5), got shape (6, 1, 3)"
    ),
    "weight7-shape-cross": multi_kernel(
        {3: ones(6, 1, 7)}, ValueError, "weight7: expected shape (1, 1, 7), got shape (6, 1, 7)", **CROSS
    ),
    "weight7-circular": multi_kernel(
        {0: ones(2, 2, 3), 4: ones(3, 2)},
        ValueError,
        "weight7: expected k // 2 <= 2 channels for circular padding, got k = 7",
        padding_mode="circular",
        **CROSS,
    ),
    "mix_weight-shape": multi_kernel(
        {4: ones(6, 3)}, ValueError, "mix_weight: expected shape (3, 6), got shape (6, 3)"
    ),
    "mix_bias-shape": multi_kernel({5: ones(2)}, ValueError, "mix_bias: expected shape (3,), got shape (2,)"),
    "mix_bias-none": multi_kernel({5: None}, TypeError, "mix_bias: expected a Tensor, got NoneType"),
    "circular-not-cross": multi_kernel(
        {},
        ValueError,
        "padding_mode: 'circular' needs cross_channel=True, got cross_channel=False",
        padding_mode="circular",
    ),
    "weight_forward-even": bidirectional(
        {1: ones(1, 1, 2)}, ValueError, "weight_forward: expected shape (1, 1, k) with k odd, got shape (1, 1, 2)"
    ),
    "weight_forward-circular": bidirectional(
        {1: ones(1, 1, 15), 2: ones(1, 1, 15)},
        ValueError,
        "weight_forward: expected k // 2 <= 6 channels for circular padding, got k = 15",
        padding_mode="circular",
    ),
    "weight_backward-shape": bidirectional(
        {2: ones(1, 1, 5)}, ValueError, "weight_backward: expected shape (1, 1, 3), got shape (1, 1, 5)"
    ),
    "hidden_weight-channels": bidirectional(
        {3: ones(2, 5)}, ValueError, "hidden_weight: expected shape (hidden, 6), got shape (2, 5)"
    ),
    "hidden_bias-shape": bidirectional({4: ones(3)}, ValueError, "hidden_bias: expected shape (2,), got shape (3,)"),
    "mix_weight-hidden": bidirectional(
        {5: ones(2, 3)}, ValueError, "mix_weight: expected shape (2, 2), got shape (2, 3)"
    ),
    "mix_bias-shape-2": bidirectional({6: ones(3)}, ValueError, "mix_bias: expected shape (2,), got shape (3,)"),
}
