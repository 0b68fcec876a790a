# SPDX-License-Identifier: MIT
"""The variants and their options as data, with inputs to match."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from eca_cuda.testing import BIDIRECTIONAL, ECA, MULTI_KERNEL, Variant, make_x

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """A variant with one choice of parameter shapes and of options."""

    name: str
    variant: Variant
    shape_options: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def inputs(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        device: str = "cpu",
        parameter_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """``x`` and the parameters."""
        x = make_x(shape, dtype, device=device)
        made = self.variant.make_parameters(shape[1], parameter_dtype or dtype, device=device, **self.shape_options)
        return x, made


DEFAULTS = (
    Case("eca", ECA),
    Case("multi_kernel", MULTI_KERNEL),
    # Two hidden units even where c // 16 is 0, so that small cases exercise the small network too.
    Case("bidirectional", BIDIRECTIONAL, {"hidden": 2}),
)

# Every value of every option at least once, and every kernel size that is special: 1 (no neighbours), 9 (longer than
# any loop that is unrolled for 3, 5 and 7). Options meet in one case where the code that reads them does not.
OPTIONS = (
    Case("eca-k1", ECA, {"k": 1}),
    Case("eca-k3-bias", ECA, {"k": 3, "bias": True}),
    Case("eca-k9", ECA, {"k": 9}),
    Case("eca-circular-hard", ECA, {"k": 5, "bias": True}, {"padding_mode": "circular", "gate": "hard_sigmoid"}),
    Case("multi_kernel-hard", MULTI_KERNEL, {}, {"gate": "hard_sigmoid"}),
    Case("multi_kernel-cross", MULTI_KERNEL, {"cross_channel": True}, {"cross_channel": True}),
    Case(
        "multi_kernel-cross-circular-hard",
        MULTI_KERNEL,
        {"cross_channel": True},
        {"cross_channel": True, "padding_mode": "circular", "gate": "hard_sigmoid"},
    ),
    Case("bidirectional-no-hidden", BIDIRECTIONAL, {"hidden": 0}),
    Case("bidirectional-k5-single", BIDIRECTIONAL, {"k": 5, "hidden": 3}, {"final_sigmoid": False}),
    Case(
        "bidirectional-circular-hard",
        BIDIRECTIONAL,
        {"hidden": 1},
        {"padding_mode": "circular", "gate": "hard_sigmoid"},
    ),
)

CASES = DEFAULTS + OPTIONS

# One shape per way in which a loop can end: no channel neighbours, fewer channels than taps, vectors of 4, 8 and 16
# that do not divide a row, rows of one, nothing at all, one row that fills a cache, more rows than one core's share.
SHAPES = {
    "c1": (2, 1, 5, 7),
    "c<k": (2, 3, 7, 7),
    "7x7": (2, 20, 7, 7),
    "1x1": (3, 17, 1, 1),
    "1d": (2, 9, 13),
    "3d": (2, 9, 3, 5, 7),
    "batch1": (1, 40, 9, 11),
    "batch37": (37, 5, 3, 5),
    "many-small": (3, 300, 3, 3),
    "few-large": (1, 2, 300, 301),
    "large": (2, 24, 61, 67),
    "n0": (0, 8, 4, 4),
    "s0": (2, 8, 0, 4),
}
