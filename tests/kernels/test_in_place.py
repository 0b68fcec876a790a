# SPDX-License-Identifier: MIT
"""``eca_`` writes over x, needs no second feature map, and is refused where backward would miss x."""

from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, SHAPES
from layouts import LAYOUTS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import eca_cuda
from eca_cuda.testing import ECA, make_x

ECA_CASES = [case for case in CASES if case.variant is ECA]


def on_a_copy(x: Tensor, *parameters: Tensor, residual: None = None, **options: Any) -> Tensor:
    """``eca_`` on x in the same kind of memory, which must be what it returns."""
    copy = x.clone(memory_format=torch.preserve_format)
    y = eca_cuda.eca_(copy, *parameters, **options)
    assert y is copy
    return y


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "cropped", "transposed-space"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ECA_CASES, ids=str)
def test_every_option_is_within_the_error_budget(case, dtype, memory, check, device):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, parameters = case.inputs((2, 20, 7, 5), dtype, device=device, parameter_dtype=wide)
    check(ECA, LAYOUTS[memory](x), parameters, function=on_a_copy, activation="relu", **case.options)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_shape_is_within_the_error_budget(shape, check, device):
    x, parameters = ECA_CASES[0].inputs(shape, device=device)
    check(ECA, x, parameters, function=on_a_copy)


class Largest(TorchDispatchMode):
    """The largest fresh result of any operator."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.known, self.elements = x.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.known:
            self.elements = max(self.elements, result.numel())
        return result


def test_nothing_of_the_size_of_x_is_made(device):
    x, parameters = ECA_CASES[0].inputs((2, 20, 30, 30), device=device)
    with Largest(x) as largest:
        eca_cuda.eca_(x, *parameters, activation="relu")
    assert 0 < largest.elements <= 2 * 24, "means, padded means, gates"
    with Largest(x) as largest:
        eca_cuda.eca(x, *parameters, activation="relu")
    assert largest.elements == x.numel()


def test_it_is_refused_where_a_gradient_is_wanted(device):
    x, weight = make_x((2, 8, 3, 5), device=device), torch.ones(1, 1, 3, device=device)
    before = x.clone()
    for name, arguments in {
        "x": (x.clone().requires_grad_(), weight),
        "weight": (x, weight.clone().requires_grad_()),
        "bias": (x, weight, torch.ones(1, device=device, requires_grad=True)),
    }.items():
        text = f"^{name}: expected no gradient to be wanted, got requires_grad=True: use torch.no_grad()"
        with pytest.raises(ValueError, match=text):
            eca_cuda.eca_(*arguments)
        with torch.no_grad():
            eca_cuda.eca_(arguments[0].detach().clone(), *arguments[1:])
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="weight: expected shape"):
        eca_cuda.eca_(x, torch.ones(5, device=device))


def test_autocast_and_compile_change_nothing(device):
    x, (weight,) = ECA_CASES[0].inputs((2, 20, 3, 5), torch.bfloat16, device=device)
    weight = weight.float()
    expected = on_a_copy(x, weight)
    with torch.autocast(device, dtype=torch.float16):
        assert torch.equal(on_a_copy(x, weight), expected)
    copy = x.clone()
    torch.compile(eca_cuda.eca_, backend="aot_eager", fullgraph=True)(copy, weight)
    assert torch.equal(copy, expected)
