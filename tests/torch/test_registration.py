# SPDX-License-Identifier: MIT
"""The raw operators do what they declare: schemas, no aliasing, no mutation, fakes that match the results."""

from typing import Any

import pytest
import torch
from cases import CASES, DTYPES, Case
from layouts import LAYOUTS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

from eca_cuda import ops
from eca_cuda.options import BATCH_STATISTICS, GRAD_RESIDUAL, Options
from eca_cuda.testing import make_x

SHAPE = (2, 8, 3, 5)
DIRECTIONS = ops.Operators._fields
LAYOUT_NAMES = list(LAYOUTS)


def arguments(
    case: Case,
    direction: str,
    *,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    relu: bool = False,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """Valid arguments of the operator for ``direction``; with ``relu`` also a residual."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, parameters = case.inputs(shape, dtype, device=device, parameter_dtype=wide)
    x, residual, grad_y = (
        LAYOUTS[layout](t) for t in (x, *(make_x(shape, dtype, seed=s, device=device) for s in (2, 3)))
    )
    if case.variant.name == "eca" and len(parameters) == 1:
        parameters.append(None)
    flags = Options(activation="relu" if relu else None, **case.options).flags
    call = (x, *parameters, residual if relu else None, flags)
    if direction != "backward":
        return call
    _, mean, signs = ops.OPERATORS[case.variant.name].forward(*call)
    flags |= GRAD_RESIDUAL * relu
    return (grad_y, x, mean, signs if relu else None, *parameters, flags)


def norm_arguments(direction: str, *, training: bool = False, relu: bool = True, device: str = "cpu") -> Any:
    """The same for batch norm with ECA."""
    *_, residual, flags = arguments(CASES[0], "forward", relu=relu, device=device)
    x, grad_y = make_x(SHAPE, device=device), make_x(SHAPE, seed=3, device=device)
    numbers = [make_x((1, 8, 1), seed=s, device=device).flatten() for s in (4, 5, 6)]
    statistics = (None, None) if training else (numbers[2], numbers[2].square() + 1)
    parameters = (torch.ones(1, 1, 3, device=device), None, *numbers[:2])
    call = (x, *parameters, *statistics, 1e-5, residual, flags)
    if direction != "backward":
        return call
    _, mean, norm_mean, norm_var, signs = ops.OPERATORS[ops.NORM].forward(*call)
    flags |= GRAD_RESIDUAL * relu | BATCH_STATISTICS * training
    return (grad_y, x, mean, signs if relu else None, *parameters, norm_mean, norm_var, 1e-5, flags)


def operator(case: Case, direction: str) -> Any:
    return getattr(ops.OPERATORS[case.variant.name], direction)


def test_every_variant_has_three_operators():
    assert ops.OPERATORS.keys() == {case.variant.name for case in CASES} | {ops.NORM}
    for variant in ops.OPERATORS.values():
        assert all(isinstance(op, torch._ops.OpOverload) and op.namespace == "eca_cuda" for op in variant)


# opcheck is slow, as it traces: every option first, then dtypes and layouts on one variant.
@pytest.mark.parametrize("relu", [False, True], ids=["", "residual-relu"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_opcheck_for_every_option(case, direction, relu, device):
    opcheck(operator(case, direction), arguments(case, direction, relu=relu, device=device))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 8, 3, 5), (2, 8, 7), (2, 8, 2, 3, 4), (1, 1, 1)], ids=str)
def test_opcheck_for_every_dtype_and_rank(shape, dtype, direction, device):
    opcheck(operator(CASES[0], direction), arguments(CASES[0], direction, shape=shape, dtype=dtype, device=device))


@pytest.mark.parametrize("relu", [False, True], ids=["", "residual-relu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_opcheck_for_batch_norm(direction, training, relu, device):
    if direction == "infer" and training:
        pytest.skip("needs statistics")
    call = norm_arguments(direction, training=training, relu=relu, device=device)
    opcheck(getattr(ops.OPERATORS[ops.NORM], direction), call)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_opcheck_for_no_positions(direction, device):
    """The means are NaN, which test_aot_dispatch_dynamic would report as a difference."""
    call = arguments(CASES[0], direction, shape=(2, 8, 0, 5), device=device)
    opcheck(operator(CASES[0], direction), call, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_opcheck_for_every_layout(layout, direction, device):
    opcheck(operator(CASES[0], direction), arguments(CASES[0], direction, layout=layout, relu=True, device=device))


def described(result: Any) -> list[tuple[Any, ...]]:
    """All that a tracer may rely on. Real and fake empty_like differ in strides of size-1 dimensions, so not these."""
    tensors = result if isinstance(result, (tuple, list)) else [result]
    strides = [[t.stride(dim) for dim in range(t.dim()) if t.shape[dim] != 1] for t in tensors]
    return [(t.shape, strides.pop(0), t.dtype, t.device, t.storage_offset()) for t in tensors]


@pytest.mark.parametrize("relu", [False, True], ids=["", "residual-relu"])
@pytest.mark.parametrize("shape", [(2, 8, 6), SHAPE, (2, 8, 2, 3, 4), (1, 8, 4, 4), (3, 8, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES[:1], ids=str)
def test_fakes_have_the_strides_of_the_results(case, direction, layout, shape, relu, device):
    call = arguments(case, direction, shape=shape, dtype=torch.bfloat16, layout=layout, relu=relu, device=device)
    with FakeTensorMode() as mode:
        fake = operator(case, direction)(*tree_map_only(Tensor, mode.from_tensor, call))
    assert described(fake) == described(operator(case, direction)(*call))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_new_tensors_of_the_promised_kinds(case, device):
    x, *_ = call = arguments(case, "forward", dtype=torch.bfloat16, relu=True, device=device)
    y, mean, signs = operator(case, "forward")(*call)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert (mean.shape, mean.dtype) == (SHAPE[:2], torch.float32)
    torch.testing.assert_close(mean, x.float().mean((2, 3)))
    assert (signs.shape, signs.dtype) == ((2, 15), torch.uint8)
    bits = (signs.unsqueeze(-1) >> torch.arange(8, device=device)) & 1
    assert torch.equal(bits.view(x.shape).bool(), y > 0)
    assert torch.equal(operator(case, "infer")(*call), y)


@pytest.mark.parametrize("relu", [False, True], ids=["", "residual-relu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_unneeded_gradients_are_empty(case, relu, device):
    call = arguments(case, "backward", relu=relu, device=device)
    _, x, _, _, *parameters, _ = call
    grad_x, grad_residual, *grads = operator(case, "backward")(*call)
    assert grad_x.shape == x.shape
    assert grad_residual.shape == (x.shape if relu else (0,))
    assert [g.shape for g in grads] == [(0,) if p is None else p.shape for p in parameters]


@pytest.mark.parametrize("direction", ["infer", "forward"])
@pytest.mark.parametrize("case", CASES[:3], ids=str)
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_raw_operators_give_no_gradient(case, direction, device):
    """The reason why they are private: their output looks differentiable, but its gradient is None."""
    x, *rest = arguments(case, direction, device=device)
    x.requires_grad_()
    result = operator(case, direction)(x, *rest)
    y = result[0] if direction == "forward" else result
    if y.requires_grad:
        y.sum().backward()
    assert x.grad is None


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_raw_operators_refuse_bad_arguments_instead_of_reading_beyond_them(direction, device):
    """The operators' messages are short; the functions have full ones."""
    call = list(arguments(CASES[0], direction, device=device))
    weight = 4 if direction == "backward" else 1
    for bad in (torch.ones(1, 1, 4), torch.ones(5), torch.ones(1, 1, 5, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            operator(CASES[0], direction)(*call[:weight], bad.to(device), *call[weight + 1 :])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_batch_norm_refuses_bad_arguments_instead_of_reading_beyond_them(direction, device):
    call = list(norm_arguments(direction, device=device))
    first = {"infer": 0, "forward": 0, "backward": 3}[direction]
    for i in (3, 4, 5, 6):  # weight and bias, mean and variance
        for bad in (torch.ones(7), torch.ones(8, 1), torch.ones(8, dtype=torch.int64)):
            with pytest.raises((TypeError, ValueError, RuntimeError)):
                changed = [*call[: first + i], bad.to(device), *call[first + i + 1 :]]
                getattr(ops.OPERATORS[ops.NORM], direction)(*changed)
