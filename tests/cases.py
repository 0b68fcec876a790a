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
