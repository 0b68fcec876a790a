# SPDX-License-Identifier: MIT
"""``lengths=``: samples of different length in one padded batch get the gates that each would get alone, unpadded."""

import math
from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, Case
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import eca_cuda
from eca_cuda.testing import channels_last, evaluate, make_x, used_budget

SHAPE = (4, 9, 13)
LENGTHS = (13, 5, 1, 8)


def padded(dtype: torch.dtype, device: str, padding: float) -> tuple[Tensor, Tensor]:
    """``x`` with ``padding`` after each sample, and the lengths."""
    x = make_x(SHAPE, dtype, device=device)
    for sample, length in zip(x, LENGTHS, strict=True):
        sample[:, length:] = padding
    return x, torch.tensor(LENGTHS, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_sample_gets_what_it_gets_alone(case, dtype, device):
    """Output and gradients of maps, by the error budget of the sample that is cut to its length."""
    x, lengths = padded(dtype, device, 1000)
    residual, grad_y = (make_x(SHAPE, dtype, seed=seed, device=device) for seed in (2, 3))
    for sample, length in zip(grad_y, LENGTHS, strict=True):
        sample[:, length:] = 0
    _, parameters = case.inputs(SHAPE, dtype, device=device)
    options = {"residual": residual, "grad_y": grad_y} | case.options
    together = evaluate(case.variant.function, x, parameters, lengths=lengths, **options).results
    assert {t.dtype for t in together.values()} == {dtype}
    summed = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    for n, length in enumerate(LENGTHS):
        one = {key: t[n : n + 1, :, :length] if isinstance(t, Tensor) else t for key, t in options.items()}
        wide = torch.float32 if dtype == torch.float64 else None
        eager, exact = (
            evaluate(case.variant.reference, x[n : n + 1, :, :length], parameters, dtype=d, **one).results
            for d in (wide, torch.float64)
        )
        for name in ("y", "grad_x", "grad_residual"):
            ours = together[name][n : n + 1, :, :length]
            used_budget(f"{name} of sample {n}", ours, eager[name], exact[name], SHAPE[1] + length)
        for i, total in enumerate(summed):
            total += exact[f"grad_parameter{i}"]
    if dtype == torch.float64:
        torch.testing.assert_close([together[f"grad_parameter{i}"] for i in range(len(summed))], summed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_long_sequence_of_halves_does_not_overflow(dtype, device):
    """The sum of these leaves float16's range; their mean does not."""
    x = torch.full((1, 4, 10000), 20.0, dtype=dtype, device=device)
    weight = torch.full((1, 1, 1), -0.05, dtype=dtype, device=device)
    lengths = torch.tensor([10000], device=device)
    torch.testing.assert_close(eca_cuda.eca(x, weight, lengths=lengths), eca_cuda.eca(x, weight))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_padding_may_be_nan(case, device):
    x, lengths = padded(torch.float32, device, math.nan)
    y = case.variant.function(x, *case.inputs(SHAPE, device=device)[1], lengths=lengths)
    assert torch.equal(y.isnan(), x.isnan())


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_full_lengths_change_nothing(case, check, device):
    x, parameters = case.inputs(SHAPE, device=device)
    lengths = torch.full((SHAPE[0],), SHAPE[2], dtype=torch.int32, device=device)

    def function(*args: Tensor, **options: Any) -> Tensor:
        return case.variant.function(*args, lengths=lengths, **options)

    check(case.variant, x, parameters, function=function, grad_y=make_x(SHAPE, seed=3, device=device))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_derivatives(case, device):
    x, parameters = case.inputs((2, 3, 4), torch.float64, device=device)
    lengths = torch.tensor([4, 2], device=device)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    assert gradcheck(lambda *t: case.variant.function(*t, lengths=lengths), leaves, check_forward_ad=True)
    assert gradgradcheck(lambda *t: case.variant.function(*t, lengths=lengths), leaves)


@pytest.mark.parametrize("mode", ["fused", "inline"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_modules_compiled_and_not(case, mode, device):
    """New lengths need no new graph, and channels_last stays what it is."""
    torch.compiler.reset()
    layer = case.variant.module(9).to(device)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = make_x(SHAPE, device=device)
    with eca_cuda.compile_mode(mode):
        for values in (LENGTHS, (1, 2, 3, 4)):
            with torch.compiler.set_stance("fail_on_recompile" if values != LENGTHS else "default"):
                lengths = torch.tensor(values, device=device)
                expected = case.variant.function(x, *layer.parameters(), lengths=lengths)
                torch.testing.assert_close(compiled(x, lengths=lengths), expected)
    torch.testing.assert_close(layer(channels_last(x), lengths=lengths), expected)
    assert not torch.equal(layer(x), expected)


ON_META = torch.ones(4, dtype=torch.int64, device="meta")
BAD: dict[str, tuple[type[Exception], str, tuple[int, ...], Any]] = {
    "2-D input": (
        ValueError,
        "expected x of shape [N, C, L], got x of shape (2, 9, 3, 5)",
        (2, 9, 3, 5),
        torch.ones(2),
    ),
    "list": (TypeError, "expected a Tensor, got list", SHAPE, [1, 2, 3, 4]),
    "fractions": (TypeError, "expected int32 or int64, got torch.float32", SHAPE, torch.ones(4)),
    "too few": (ValueError, "expected shape (4,), got shape (3,)", SHAPE, torch.tensor([1, 2, 3])),
    "too long": (ValueError, "expected values in [0, 13], got values in [1, 14]", SHAPE, torch.tensor([1, 2, 3, 14])),
    "negative": (ValueError, "expected values in [0, 13], got values in [-1, 3]", SHAPE, torch.tensor([1, 2, 3, -1])),
    "elsewhere": (
        ValueError,
        "expected a tensor on the device of x, cpu, got meta",
        SHAPE,
        torch.ones(4).long().to("meta"),
    ),
}


@pytest.mark.parametrize("error, message, shape, lengths", BAD.values(), ids=BAD)
def test_bad_lengths_are_refused(error, message, shape, lengths):
    with pytest.raises(error) as refused:
        eca_cuda.eca(make_x(shape), torch.ones(1, 1, 3), lengths=lengths)
    assert str(refused.value) == f"lengths: {message}"


def test_fake_tensors_have_no_values_to_check():
    with FakeTensorMode():
        lengths = torch.tensor(LENGTHS)
        assert eca_cuda.eca(torch.empty(SHAPE), torch.ones(1, 1, 3), lengths=lengths).shape == SHAPE
        with pytest.raises(ValueError, match="lengths: expected shape"):
            eca_cuda.eca(torch.empty(SHAPE), torch.ones(1, 1, 3), lengths=lengths[:3])


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_length_of_zero_is_the_mean_of_nothing(case: Case):
    """NaN, and only for that sample."""
    x, parameters = case.inputs((2, 9, 5))
    y = case.variant.function(x, *parameters, lengths=torch.tensor([0, 5]))
    assert y[0].isnan().all() and y[1].isfinite().all()
