# SPDX-License-Identifier: MIT
"""NaN and infinity appear where they do in eager, and nowhere else.

The oracle is the reference in float64 on the CPU, whatever the device, with a convolution that does not multiply its
padding: eager itself differs in that from dtype to dtype and from device to device. Gradients are compared by whether
they are finite: where one formula subtracts two infinities, another has one.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, Case
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda.compiling import shifted_conv
from eca_cuda.testing import evaluate, make_x

VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SHAPE = (2, 8, 3, 5)


def classes(t: Tensor) -> Tensor:
    """2 for NaN, +-1 for infinities, 0 for numbers."""
    return t.isnan() * 2 + t.isposinf() * 1 - t.isneginf() * 1


def spoiled(case: Case, value: float, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The inputs with ``value`` in the middle or at the beginning of one of them, for each of them."""
    x, parameters = case.inputs(SHAPE, dtype)
    residual, grad_y = (make_x(SHAPE, dtype, seed=seed) for seed in (2, 3))
    named = {"x": x, "residual": residual, "grad_y": grad_y} | {f"parameter{i}": p for i, p in enumerate(parameters)}
    for name, tensor in named.items():
        for at in sorted({0, tensor.numel() // 2}) if tensor.numel() else ():
            bad = tensor.clone()
            bad.view(-1)[at] = value
            yield f"{name}[{at}]", named | {name: bad}


def results(
    function: Callable[..., Tensor], inputs: dict[str, Tensor], device: str, memory: str, **options: Any
) -> dict[str, Tensor]:
    """The results of ``function`` for ``inputs`` on ``device``, on the CPU."""
    inputs = {name: t.to(device) for name, t in inputs.items()}
    maps = {name: LAYOUTS[memory](inputs.pop(name)) for name in ("x", "residual", "grad_y")}
    made = evaluate(function, parameters=list(inputs.values()), **maps, **options).results
    return {name: t.cpu() for name, t in made.items()}


# The gates compute in float32 whatever the dtype, so the layouts and activations meet the dtypes once.
@pytest.mark.parametrize(
    "memory, activation", [("contiguous", None), ("channels_last", "relu")], ids=["contiguous", "channels_last-relu"]
)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nonfinite_values_go_where_they_go_in_eager(case, dtype, value, activation, memory, device):
    oracle = {"dtype": torch.float64, "conv": shifted_conv}
    for name, inputs in spoiled(case, value, dtype):
        options = {"activation": activation, **case.options}
        ours = results(case.variant.function, inputs, device, memory, **options)
        exact = results(case.variant.reference, inputs, "cpu", memory, **options, **oracle)
        assert torch.equal(classes(ours.pop("y")), classes(exact.pop("y"))), f"{value} in {name}: y"
        for key in ours:
            assert torch.equal(ours[key].isfinite(), exact[key].isfinite()), f"{value} in {name}: {key}"


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_nonfinite_sample_leaves_the_others_alone(case, memory, device):
    x, parameters = case.inputs((3, 8, 3, 5), device=device)
    bad = x.clone()
    bad[1, 4, 1, 2] = math.nan
    grad_y = make_x(x.shape, seed=3, device=device)
    clean, mixed = (
        evaluate(case.variant.function, LAYOUTS[memory](t), parameters, grad_y=grad_y, **case.options).results
        for t in (x, bad)
    )
    for name in ("y", "grad_x"):
        assert torch.equal(mixed[name][::2], clean[name][::2])
        assert mixed[name][1].isnan().any()
