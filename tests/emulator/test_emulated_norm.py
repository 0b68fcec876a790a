# SPDX-License-Identifier: MIT
"""Batch norm followed by ECA on the emulated device, beyond the checks of ``test_batch_norm_eca.py``: devices of every
size and every order of blocks; the number of kernels and the bytes they move; statistics without cancellation; the
signs of y from every kernel that writes them."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import emulated
import pytest
import torch
from cases import DTYPES
from layouts import LAYOUTS
from norms import Call, check
from test_emulated_kernels import far_apart
from torch import Tensor

from eca_cuda import batch_norm_eca, ops
from eca_cuda.options import BATCH_STATISTICS, GRAD_RESIDUAL, RELU
from eca_cuda.testing import make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

# One warp alone; the blocks of a real GPU; gates in global memory; for statistics that are given, one pass by one block
# and by the blocks of a cluster.
DEVICES: dict[str, dict[str, int]] = {
    "one-warp": {"multiprocessors": 1, "threads": 32, "l2": 4 << 10, "capability": 75},
    "large": {"multiprocessors": 8, "threads": 1024, "l2": 50 << 20, "capability": 75},
    "little-shared-memory": {"shared": 4800, "capability": 75},
    "one-block": {"shared": 64 << 10, "multiprocessors": 1},
    "clusters": {"shared": 7 << 10, "multiprocessors": 6},
}


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the test on the device that it names, or on the default one."""
    emulated.set_device(**DEVICES.get(getattr(request, "param", ""), {}))
    with emulated.emulated():
        yield
    emulated.set_device()


# Planes that vectors straddle, that they divide and that they can't; planes of several tiles; rows of few vectors and
# of many; one position.
SHAPES = [(3, 40, 7, 7), (3, 32, 8, 8), (2, 5, 3, 5), (2, 3, 70, 61), (2, 4, 70, 60), (1, 304, 3, 1), (5, 8, 1, 1)]
BOTH = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
MEMORY = pytest.mark.parametrize("memory", ["contiguous", "channels_last"])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@MEMORY
@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("run", DEVICES, indirect=True)
def test_every_device_computes_the_reference(run, dtype, training, memory, shape):
    check(Call(shape, dtype, memory=memory, training=training), "cpu")


@pytest.mark.parametrize("run", ["one-warp", "clusters"], indirect=True)
@MEMORY
@BOTH
@pytest.mark.parametrize("narrow", [torch.float32, torch.float16], ids=str)
def test_parameters_keep_their_dtype(run, narrow, training, memory):
    call = Call((3, 32, 7, 7), torch.float16, narrow, memory, training, without=(), options={})
    check(call, "cpu")
    check(replace(call, without=("norm_weight", "residual"), options={"activation": "relu"}), "cpu")


@pytest.mark.parametrize("run", ["little-shared-memory", "clusters"], indirect=True)
@MEMORY
@BOTH
def test_bits_do_not_depend_on_who_runs_when(run, training, memory):
    call = Call((3, 40, 15, 17), torch.bfloat16, memory=memory, training=training)
    with emulated.emulated(range(8)):  # compares them itself
        call.run(batch_norm_eca, call.tensors(), make_x(call.shape, call.dtype))


@pytest.mark.parametrize(
    "shape, dim, stride, layout",
    [((3, 4, 8), 0, 2**30 + 8, "contiguous"), ((2, 8, 5), 2, 2**29 + 8, "channels_last")],
    ids=["samples", "rows"],
)
def test_offsets_beyond_31_bits(run, shape, dim, stride, layout):
    call = Call(shape, torch.float16, options={"activation": "relu"})
    tensors = call.tensors()
    near = call.run(batch_norm_eca, tensors, None)
    for name in ("x", "residual"):
        tensors[name] = far_apart(LAYOUTS[layout](tensors[name]), dim, stride)
    operators = ops.OPERATORS[ops.NORM]
    x, weight, *norm = (tensors[k] for k in ("x", "weight", "norm_weight", "norm_bias"))
    y, mean, *of_norm, signs = operators.forward(x, weight, None, *norm, None, None, 1e-3, tensors["residual"], RELU)
    torch.testing.assert_close(y, near["y"])
    flags = RELU | BATCH_STATISTICS | GRAD_RESIDUAL
    grads = operators.backward(torch.ones_like(y), x, mean, signs, weight, None, *norm, *of_norm, 1e-3, flags)
    assert torch.equal(grads[1] != 0, y > 0)


# --- launches and bytes moved ----------------------------------------------------------------------------------------


def counted(call: Call) -> list[dict[str, int]]:
    """The counts of a forward and of a backward pass."""
    tensors = {k: t.requires_grad_("running" not in k) for k, t in call.tensors().items()}
    x, weight, *norm = (
        tensors.get(k) for k in ("x", "weight", "norm_weight", "norm_bias", "running_mean", "running_var")
    )
    assert x is not None
    with emulated.emulated(schedules=(0,)):
        counts = [emulated.count()]
        y = batch_norm_eca(x, weight, *norm, residual=tensors.get("residual"), training=call.training, **call.options)
        counts.append(emulated.count())
        y.backward(LAYOUTS[call.memory](make_x(call.shape, call.dtype)))
        counts.append(emulated.count())
    return [{k: b[k] - a[k] for k in a} for a, b in itertools.pairwise(counts)]


@pytest.mark.parametrize(
    ("shape", "memory"),
    [
        ((3, 32, 8, 8), "contiguous"),
        ((2, 16, 48, 40), "contiguous"),  # several tiles
        ((3, 32, 8, 8), "channels_last"),
        ((4, 64, 7, 7), "channels_last"),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_map_is_moved_as_often_as_the_specification_says(dtype, shape, memory):
    """Forward reads x twice and the residual once, and writes y and its signs; backward reads grad_y, the signs and x
    twice, and writes two gradients. Signs are a sixteenth of a map's bytes."""
    call = Call(shape, dtype, memory=memory)
    forward, backward = counted(call)
    size = math.prod(shape) * dtype.itemsize
    assert (forward["loaded"], forward["stored"]) == (3 * size, size + size // 16)
    assert (backward["loaded"], backward["stored"]) == (4 * size + size // 8, 2 * size)


@pytest.mark.parametrize(
    ("call", "forward", "backward"),
    [
        (Call((3, 32, 8, 8)), 4, 5),
        (Call((3, 5, 3, 5)), 5, 5),
        (Call((3, 5, 3, 5), options={}), 4, 5),
        (Call((3, 32, 8, 8), training=False), 1, 5),
        (Call((3, 5, 3, 5), training=False), 2, 5),
    ],
    ids=["training", "training, packed", "no signs", "eval", "eval, packed"],
)
def test_launches_are_few(call, forward, backward):
    assert [step["launches"] for step in counted(call)] == [forward, backward]


def test_statistics_that_are_given_move_one_map_in_and_one_out():
    call = Call((3, 32, 8, 8), torch.float16, training=False, without=("residual", "bias"))
    emulated.set_device(shared=64 << 10)
    try:
        forward, backward = counted(call)
    finally:
        emulated.set_device()
    size = math.prod(call.shape) * 2
    assert forward["loaded"] == size
    assert (backward["loaded"], backward["stored"]) == (3 * size + size // 8, size), "x once: nothing depends on it"


# --- numbers ----------------------------------------------------------------------------------------------------------


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The means of the samples, and the mean and the variance of each channel."""
    c, dtype = x.shape[1], torch.float64 if x.dtype == torch.float64 else torch.float32
    weight = torch.zeros(1, 1, 1, dtype=dtype if x.dtype == torch.float64 else x.dtype)
    _, mean, norm_mean, norm_var, signs = ops.OPERATORS[ops.NORM].forward(
        x, weight, None, None, None, None, None, 1e-5, None, 0
    )
    assert (norm_mean.dtype, norm_var.dtype) == (dtype, dtype) and norm_mean.shape == norm_var.shape == (c,)
    assert signs.numel() == 0
    return mean, norm_mean, norm_var


@MEMORY
@pytest.mark.parametrize("shape", [(16, 12, 16, 16), (5, 12, 7, 7), (2, 3, 70, 61)], ids=str)
def test_variances_keep_their_digits_where_means_are_large(run, shape, memory):
    """Deviations of 0.01 around 1000: a plain sum of squares would lose all digits of the variance."""
    x = LAYOUTS[memory]((1e3 + 1e-2 * make_x(shape, torch.float64)).float())
    mean, norm_mean, norm_var = statistics(x)
    dims = (0, *range(2, x.dim()))
    torch.testing.assert_close(mean, x.double().flatten(2).mean(2).float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(norm_mean, x.double().mean(dims).float(), rtol=2e-7, atol=0)
    torch.testing.assert_close(norm_var, x.double().var(dims, correction=0).float(), rtol=1e-4, atol=0)


@MEMORY
def test_an_outlier_that_everything_is_measured_from_costs_few_digits(run, memory):
    x = make_x((4, 8, 12, 12))
    x[:, :, 0, 0] = 1e4
    _, norm_mean, norm_var = statistics(LAYOUTS[memory](x))
    torch.testing.assert_close(norm_mean, x.double().mean((0, 2, 3)).float(), rtol=0, atol=2e-7 * 1e4)
    torch.testing.assert_close(norm_var, x.double().var((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)


def test_a_constant_has_no_variance(run):
    _, norm_mean, norm_var = statistics(torch.full((3, 8, 5, 7), 0.1))
    assert torch.equal(norm_mean, torch.full((8,), 0.1)) and not norm_var.any()


# --- signs ------------------------------------------------------------------------------------------------------------


def unpacked(signs: Tensor, y: Tensor, rows: bool) -> Tensor:
    """The signs, bool like y, from the bits that csrc/problem.h describes."""
    n, c, s = y.shape[0], y.shape[1], math.prod(y.shape[2:])
    assert signs.shape == (n, -(-c * s // (16 // y.element_size())))
    bits = signs.unsqueeze(2) >> torch.arange(8, dtype=torch.uint8) & 1
    per_byte = 16 // y.element_size()
    assert not bits[..., per_byte:].any() and not bits[..., :per_byte].flatten(1)[:, c * s :].any()
    bits = bits[..., :per_byte].flatten(1)[:, : c * s]
    return (bits.view(n, s, c).transpose(1, 2) if rows else bits.view(n, c, s)).reshape(y.shape).bool()


@pytest.mark.parametrize("run", ["one-warp", "one-block", "clusters"], indirect=True)
@pytest.mark.parametrize("name", ["eca", ops.NORM])
@pytest.mark.parametrize("shape", [(3, 40, 7, 7), (3, 32, 8, 8), (2, 5, 3, 5), (2, 64, 3, 11)], ids=str)
@MEMORY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bit_is_set_where_y_is_above_zero_or_nan(run, dtype, memory, shape, name):
    x, residual = (LAYOUTS[memory](make_x(shape, dtype, seed=seed)) for seed in (0, 1))
    residual[0, 1, 2, 1], residual[0, 2, 1, 0], residual[-1, 0, 0, 0] = math.nan, -math.nan, -0.0
    weight = torch.ones(1, 1, 3, dtype=dtype)
    norm = (None, None, None, None, 1e-5) if name == ops.NORM else ()
    y, *_, signs = ops.OPERATORS[name].forward(x, weight, None, *norm, residual, RELU)
    assert y.isnan().sum() == 2 and (y == 0).any()
    assert torch.equal(unpacked(signs, y, memory == "channels_last"), ~(y <= 0))


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_what_is_rounded_to_zero_has_no_bit(run, memory):
    x = LAYOUTS[memory](torch.full((2, 8, 4, 4), 6e-8, dtype=torch.float16))  # the least number; the gate is 0.5
    y, _, signs = ops.OPERATORS["eca"].forward(x, torch.zeros(1, 1, 1, dtype=torch.float16), None, None, RELU)
    assert torch.equal(unpacked(signs, y, memory == "channels_last"), y > 0) and not y.all()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_statistics_of_nothing_are_refused(run):
    for shape in ((0, 8, 4, 4), (2, 8, 0)):
        with pytest.raises(ValueError, match="invalid argument x"):
            statistics(torch.empty(shape))


def test_a_failed_launch_says_what_was_launched():
    emulated.set_device(capability=61)
    try:
        with (
            emulated.emulated(),
            pytest.raises(RuntimeError, match=r"could not launch a kernel of batch norm.*emulated"),
        ):
            statistics(make_x((2, 8, 4, 4)))
    finally:
        emulated.set_device()


# --- under the sanitizers ---------------------------------------------------------------------------------------------


@pytest.mark.sanitized
@MEMORY
@BOTH
@pytest.mark.parametrize("shape", [(3, 5, 3, 4), (2, 9, 13), (2, 8, 13), (2, 4, 40, 61)], ids=str)
def test_batch_norm_is_sound(run, shape, training, memory):
    check(Call(shape, memory=memory, training=training), "cpu")


@pytest.mark.sanitized
@pytest.mark.parametrize("run", ["clusters"], indirect=True)
@MEMORY
def test_given_statistics_are_sound(run, memory):
    check(Call((3, 32, 8, 8), torch.float16, memory=memory, training=False), "cpu")
