# SPDX-License-Identifier: MIT
"""Checks every row of a gradient, however small. A budget on the largest error does not.

A row is what one channel of one sample, or one number of a parameter, receives. The largest error of a whole tensor
admits a small row that is zero, doubled or negated; here each may differ from the exact one by half of it:

    |ours - exact| <= |exact| / 2 + 2 |eager - exact| + sqrt(terms) eps(accumulator) max|exact|      row by row
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eca_cuda.testing import Variant, evaluate


def check_gradient_rows(
    variant: Variant, x: Tensor, parameters: Sequence[Tensor], *, grad_y: Tensor, **options: Any
) -> None:
    """AssertionError for the first row of any gradient that breaks the rule at the top of this file."""
    options["grad_y"] = grad_y
    ours = evaluate(variant.function, x, parameters, **options).results
    eager = evaluate(variant.reference, x, parameters, **options).results
    exact = evaluate(variant.reference, x, parameters, dtype=torch.float64, **options).results
    for name in ours:
        if name != "y":
            check_rows(name, ours[name], eager[name], exact[name], terms=max(1, x.numel()))


def check_rows(name: str, ours: Tensor, eager: Tensor, exact: Tensor, terms: int) -> None:
    """The same for one gradient."""
    if exact.numel() == 0:
        return
    accumulator = torch.float64 if ours.dtype == torch.float64 else torch.float32
    floor = math.sqrt(terms) * torch.finfo(accumulator).eps * float(exact.abs().max()) + torch.finfo(ours.dtype).tiny
    mine, theirs, right = (_rows(t.double(), name) for t in (ours, eager, exact))
    error, allowed = (mine - right).norm(dim=1), right.norm(dim=1) / 2 + 2 * (theirs - right).norm(dim=1) + floor
    bad = ~(error <= allowed)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise AssertionError(f"{name}: row {row} is off by {error[row]:.3e}, its norm is {right[row].norm():.3e}")


def _rows(gradient: Tensor, name: str) -> Tensor:
    if name in ("grad_x", "grad_residual"):
        return gradient.flatten(0, 1).flatten(1)
    return gradient.flatten().unsqueeze(1)
