# SPDX-License-Identifier: MIT
"""Promises of the CUDA kernels alone, on the emulated device: right results on devices of every size and for every
order of blocks; 64-bit offsets; the number of launches; errors that describe the launch."""

from collections.abc import Iterator
from typing import Any

import emulated
import pytest
import torch
from cases import CASES, DEFAULTS
from gradients import check_gradient_rows
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda.testing import ECA, evaluate, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

# One warp alone; the blocks of a real GPU, in which a tile holds many planes; too little shared memory for the gate.
DEVICES: dict[str, dict[str, int]] = {
    "one-warp": {"multiprocessors": 1, "threads": 32, "l2": 4 << 10},
    "large": {"multiprocessors": 8, "threads": 1024, "l2": 50 << 20},
    "little-shared-memory": {"shared": 2400},
}


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the test on the device that it names, or on the default one."""
    emulated.set_device(**{"capability": 75} | DEVICES.get(getattr(request, "param", ""), {}))  # none takes one pass
    with emulated.emulated():
        yield
    emulated.set_device()


def inputs(case: Any, shape: tuple[int, ...], dtype: torch.dtype, memory: str) -> dict[str, Any]:
    x, parameters = case.inputs(shape, dtype)
    layout = LAYOUTS[memory]
    maps = [layout(make_x(shape, dtype, seed=seed)) for seed in (2, 3)]
    return {"x": layout(x), "parameters": parameters, "residual": maps[0], "grad_y": maps[1], **case.options}


# Planes of one tile and of several, that vectors straddle or not; rows of one vector and of many; fewer elements than
# threads.
@pytest.mark.parametrize(
    "shape", [(3, 40, 7, 7), (2, 3, 70, 61), (2, 4, 70, 61), (1, 304, 3, 1), (1, 300, 3, 2), (5, 2, 1, 1)], ids=str
)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
@pytest.mark.parametrize("run", DEVICES, indirect=True)
def test_every_device_computes_the_reference(run, case, dtype, memory, shape, check):
    given = inputs(case, shape, dtype, memory)
    check(case.variant, **given, activation="relu")
    check_gradient_rows(case.variant, **given, activation="relu")


@pytest.mark.sanitized
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_are_clean(run, case, dtype, memory, check):
    """The subset that also runs under the sanitizers: each kernel with every gate, on several tiles and blocks."""
    check(case.variant, **inputs(case, (2, 5, 3, 4), dtype, memory), activation="relu")
    check(case.variant, **inputs(case, (2, 9, 13), dtype, memory))
    check(case.variant, **inputs(case, (2, 8, 13), dtype, memory), activation="relu")  # vectors straddle planes


@pytest.mark.sanitized
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tiles_smaller_than_planes_are_clean(run, dtype, memory, check):
    check(ECA, **inputs(DEFAULTS[0], (1, 3, 50, 61), dtype, memory))
    check(ECA, **inputs(DEFAULTS[0], (1, 4, 50, 61), dtype, memory))


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_bits_do_not_depend_on_who_runs_when(run, case, dtype, memory):
    given = inputs(case, (3, 40, 15, 17), dtype, memory)
    with emulated.emulated(range(12)):  # compares the schedules itself
        evaluate(case.variant.function, **given, activation="relu")


def test_a_difference_between_schedules_is_noticed():
    """The comparison in the test above and in every call on the emulated device can fail."""
    answers = iter((torch.zeros(3), torch.tensor([0.0, -0.0, 0.0])))
    with pytest.raises(AssertionError, match="schedule 1 gives other bits than schedule 0"):
        emulated._under((0, 1), lambda: next(answers))()


def far_apart(x: Tensor, dim: int, stride: int) -> Tensor:
    """The same values, with ``stride`` elements between neighbours of ``dim``, in mostly untouched memory."""
    strides = list(x.stride())
    strides[dim] = stride
    storage = torch.empty((x.shape[dim] - 1) * stride + x.numel(), dtype=x.dtype)
    return storage.as_strided(x.shape, strides).copy_(x)


# Offsets pass 2^31 elements at the step of a sample, of a plane, and of a row.
@pytest.mark.parametrize(
    "shape, dim, stride, layout",
    [
        ((3, 4, 8), 0, 2**30 + 8, "contiguous"),
        ((1, 5, 8), 1, 2**29 + 8, "contiguous"),
        ((1, 8, 5), 2, 2**29 + 8, "channels_last"),
    ],
    ids=["samples", "planes", "rows"],
)
def test_offsets_beyond_31_bits(run, shape, dim, stride, layout, check):
    x, parameters = DEFAULTS[0].inputs(shape, torch.float16)
    far = far_apart(LAYOUTS[layout](x), dim, stride)
    assert far.storage_offset() + sum((n - 1) * s for n, s in zip(far.shape, far.stride(), strict=True)) > 2**31
    check(ECA, far, parameters, grad_y=far_apart(LAYOUTS[layout](make_x(shape, x.dtype, seed=3)), dim, stride))


@pytest.mark.parametrize("shape, forward, backward", [((2, 5, 3, 3), 1, 2), ((0, 5, 3, 3), 0, 1), ((2, 5, 0), 1, 2)])
def test_launches_are_few(shape, forward, backward):
    x, parameters = DEFAULTS[1].inputs(shape)
    with emulated.emulated(schedules=(0,)):
        before = emulated.launches()
        y = DEFAULTS[1].variant.function(x.requires_grad_(), *parameters)
        assert emulated.launches() - before == forward
        y.sum().backward()
        assert emulated.launches() - before == forward + backward


def launch_error(**device: int) -> str:
    x, parameters = DEFAULTS[0].inputs((2, 5, 3, 3))
    emulated.set_device(**device)
    try:
        with emulated.emulated(), pytest.raises(RuntimeError) as error:
            ECA.function(x, *parameters)
    finally:
        emulated.set_device()
    return str(error.value)


def test_a_failed_launch_says_what_was_launched():
    message = launch_error(threads=16)  # fewer than a warp: no plan fits
    assert (
        "eca forward of [2, 5, 9]" in message
        and "eca_two_phase_forward_kernel" in message
        and "blocks of 32 threads" in message
    )
    assert "invalid configuration argument" in message


def test_a_missing_architecture_says_so_in_one_line():
    message = launch_error(capability=61)
    assert "this build has kernels for emulated: rebuild with TORCH_CUDA_ARCH_LIST" in message
    assert "no kernel image" in message and "\n" not in message
