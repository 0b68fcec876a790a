# SPDX-License-Identifier: MIT
"""Shared by tests and benchmarks: the variants, inputs, and the error budget that defines "correct".

The budget has no tuned tolerance. Three results are compared: ``exact`` (the reference in float64 on the same, already
rounded inputs), ``eager`` (the reference in the dtype under test) and ``ours``:

    max|ours - exact| <= 2 max|eager - exact| + (eps(output) + sqrt(terms) eps(accumulator)) max|exact|

Eager's error is random; the larger of two draws (as given, and with samples and positions reversed) counts. For float64
no wider type shows eager's error: it is taken as the error of the reference in float32, scaled by the ratio of the
two eps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor

from . import checks, table
from .table import Variant
from .variants.bidirectional import BIDIRECTIONAL
from .variants.eca import ECA
from .variants.multi_kernel import MULTI_KERNEL

__all__ = [
    "BIDIRECTIONAL",
    "ECA",
    "MULTI_KERNEL",
    "VARIANTS",
    "Variant",
    "budget",
    "channels_last",
    "check_against_reference",
    "evaluate",
    "make_x",
    "used_budget",
]

VARIANTS = tuple(table.VARIANTS[name] for name in checks.PARAMETERS)  # in the order of csrc/gates/registry.h


def make_x(shape: Sequence[int], dtype: torch.dtype = torch.float32, *, seed: int = 0, device: Any = "cpu") -> Tensor:
    """A feature map whose channels differ in mean and in spread, like real ones."""
    generator = torch.Generator().manual_seed(seed)
    n, c = shape[:2]
    ones = (1,) * (len(shape) - 2)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    offset = torch.randn((n, c, *ones), generator=generator, dtype=torch.float64)
    spread = torch.rand((1, c, *ones), generator=generator, dtype=torch.float64) + 0.5
    return (x * spread + offset).to(device=device, dtype=dtype)


def channels_last(x: Tensor) -> Tensor:
    """``x`` with channels innermost in memory, for one to three spatial dimensions."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass
class Evaluation:
    """An output and the gradients of ``sum(y * grad_y)``, by name; only the output without ``grad_y``."""

    results: dict[str, Tensor]

    def names(self) -> list[str]:
        return list(self.results)


def evaluate(
    function: Callable[..., Tensor],
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    residual: Optional[Tensor] = None,
    grad_y: Optional[Tensor] = None,
    dtype: Optional[torch.dtype] = None,
    **options: Any,
) -> Evaluation:
    """Run ``function`` and, given ``grad_y``, its backward; ``dtype`` casts every tensor first."""

    def leaf(t: Optional[Tensor]) -> Optional[Tensor]:
        if t is None:
            return None
        t = t.detach() if dtype is None else t.detach().to(dtype)
        return t.requires_grad_(grad_y is not None)

    leaves = {"x": leaf(x), "residual": leaf(residual)}
    leaves |= {f"parameter{i}": leaf(p) for i, p in enumerate(parameters)}
    ordered = [leaves[f"parameter{i}"] for i in range(len(parameters))]
    y = function(leaves["x"], *ordered, residual=leaves["residual"], **options)
    results = {"y": y.detach()}
    if grad_y is not None:
        named = {name: t for name, t in leaves.items() if t is not None}
        grads = torch.autograd.grad(y, list(named.values()), grad_y if dtype is None else grad_y.to(dtype))
        results |= {f"grad_{name}": grad for name, grad in zip(named, grads, strict=True)}
    return Evaluation(results)


def budget(
    eager: Tensor, exact: Tensor, terms: int, dtype: Optional[torch.dtype] = None, scale: Optional[float] = None
) -> float:
    """The largest error that a result of ``dtype`` (default: eager's) may have, see the top of this file.

    ``scale`` replaces a smaller max|exact| in the rounding term, for sums whose terms nearly cancel.
    """
    eps = torch.finfo(dtype or eager.dtype).eps
    accumulator = min(torch.finfo(torch.float32).eps, eps)
    eager_error = _eager_error(eager, exact) * eps / torch.finfo(eager.dtype).eps
    largest = _max_abs(exact)
    return 2 * eager_error + eps * largest + math.sqrt(max(1, terms)) * accumulator * max(largest, scale or 0.0)


def used_budget(
    name: str, ours: Tensor, eager: Tensor, exact: Tensor, terms: int, scale: Optional[float] = None
) -> float:
    """The share of the budget that ``ours`` uses, in [0, 1]; AssertionError with the numbers when it is above 1."""
    if ours.shape != exact.shape:
        raise AssertionError(f"{name}: shape {tuple(ours.shape)}, the reference has {tuple(exact.shape)}")
    representable = exact.to(ours.dtype)  # NaN, Inf, or too large for the dtype: then ours must be the same
    finite = representable.isfinite()
    if not finite.all():  # selecting takes longer than everything else here
        if not torch.equal(ours[~finite].nan_to_num(nan=0.5), representable[~finite].nan_to_num(nan=0.5)):
            raise AssertionError(f"{name}: NaN or Inf not where the exact result has them")
        ours, eager, exact = ours[finite], eager[finite], exact[finite]
    error = _max_error(ours, exact)
    allowed = budget(eager, exact, terms, ours.dtype, scale)
    if not error <= allowed:
        share = error / allowed if allowed else math.inf
        raise AssertionError(f"{name}: max error {error:.3e} is {share:.2f} of its budget {allowed:.3e}")
    return error / allowed if allowed else 0.0


def check_against_reference(
    variant: Variant,
    x: Tensor,
    parameters: Sequence[Tensor],
    *,
    residual: Optional[Tensor] = None,
    grad_y: Optional[Tensor] = None,
    function: Optional[Callable[..., Tensor]] = None,
    **options: Any,
) -> float:
    """Compare ``function`` (default: the variant's own) with the reference; returns the worst share of a budget."""
    common: dict[str, Any] = {"residual": residual, "grad_y": grad_y, **options}
    wide = x.dtype == torch.float64
    ours = evaluate(function or variant.function, x, parameters, **common)
    exact = evaluate(variant.reference, x, parameters, dtype=torch.float64, **common)
    eager_dtype = torch.float32 if wide else None
    eager = evaluate(variant.reference, x, parameters, dtype=eager_dtype, **common)
    turned = {key: _reverse(value) if isinstance(value, Tensor) else value for key, value in common.items()}
    reversed_eager = evaluate(variant.reference, _reverse(x), parameters, dtype=eager_dtype, **turned)
    n, c, s = x.shape[0], x.shape[1], math.prod(x.shape[2:])
    # All parameter gradients are sums of the same dL/dz: those that nearly cancel have the rounding of the others.
    of_parameters = [name for name in ours.names() if name.startswith("grad_parameter")]
    scale = max((_max_abs(exact.results[name].nan_to_num()) for name in of_parameters), default=0.0)
    worst = 0.0
    for name in ours.names():
        terms = n * c * s if name in of_parameters else c + s
        label = f"{variant.name} {name} {tuple(x.shape)} {x.dtype}"
        result = ours.results[name]
        one, other = eager.results[name], reversed_eager.results[name]
        if not wide and result.dtype != one.dtype:
            raise AssertionError(f"{label}: dtype {result.dtype}, the reference has {one.dtype}")
        if one.shape == x.shape:
            other = _reverse(other)
        truth = exact.results[name]
        worse = max(one, other, key=lambda t: _eager_error(t, truth))
        worst = max(worst, used_budget(label, result, worse, truth, terms, scale * (name in of_parameters)))
    return worst


def _reverse(t: Tensor) -> Tensor:
    """Samples and positions in reverse order: the same sums, added up in another order."""
    return t.flip(0, *range(2, t.dim()))


def _eager_error(eager: Tensor, exact: Tensor) -> float:
    """Eager's largest error where it is finite: float16 gradients may overflow in eager and not in ours."""
    usable = eager.isfinite() & exact.isfinite()
    return _max_error(eager, exact) if usable.all() else _max_error(eager[usable], exact[usable])


def _max_error(a: Tensor, exact: Tensor) -> float:
    return _max_abs(a.double() - exact.double())


def _max_abs(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0
