# SPDX-License-Identifier: MIT
"""The same values in various memory layouts, surrounded by NaN so that reads out of bounds are noticed."""

import math
from collections.abc import Callable

from torch import Tensor

from eca_cuda.testing import channels_last

Layout = Callable[[Tensor], Tensor]


def every_second(dim: int) -> Layout:
    """Takes every second index of ``dim`` from a tensor twice as large."""

    def layout(x: Tensor) -> Tensor:
        doubled = (*x.shape[: dim + 1], 2, *x.shape[dim + 1 :])
        return x.new_full(doubled, math.nan).select(dim + 1, 0).copy_(x)

    return layout


def cropped(x: Tensor) -> Tensor:
    """A view into a tensor with a border of 1 around the last two dimensions."""
    *outer, h, w = x.shape
    return x.new_full((*outer, h + 2, w + 2), math.nan)[..., 1:-1, 1:-1].copy_(x)


def _bordered(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:-1], x.shape[-1] + 2)


def _inside(x: Tensor) -> tuple[slice, ...]:
    return (*(slice(None),) * (x.dim() - 1), slice(1, -1))


def offset_by_one(x: Tensor, strides: tuple[int, ...] | None = None) -> Tensor:
    """Starts one element into its storage, so that no row is aligned for vector loads."""
    storage = x.new_full((x.numel() + 1,), math.nan)
    return storage.as_strided(x.shape, strides or x.contiguous().stride(), 1).copy_(x)


def swapped(a: int, b: int) -> Layout:
    """Dense, with two dimensions swapped in memory."""
    return lambda x: x.transpose(a, b).contiguous().transpose(a, b)


LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": channels_last,
    "offset": offset_by_one,
    "channels_last-offset": lambda x: offset_by_one(x, channels_last(x).stride()),
    "sliced-batch": every_second(0),
    "sliced-channels": every_second(1),
    "sliced-space": every_second(2),
    "cropped": cropped,
    "channels_last-cropped": lambda x: channels_last(x.new_full(_bordered(x), math.nan))[_inside(x)].copy_(x),
    "transposed-space": swapped(-1, -2),
    "channels-first": swapped(0, 1),
    "expanded-batch": lambda x: x[:1].expand_as(x),
    "expanded-space": lambda x: x[..., :1].expand_as(x),
}
