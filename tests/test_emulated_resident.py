# SPDX-License-Identifier: MIT
"""The resident kernels on the emulated device: every sample in the shared memory of one block, or of the blocks of a
cluster, with one slab per block or several, for every gate, dtype and layout."""

from collections.abc import Iterator
from typing import Any

import emulated
import pytest
import torch
from cases import CASES, DEFAULTS, Case
from gradients import check_gradient_rows
from layouts import LAYOUTS

from eca_cuda.testing import ECA, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Shared memory per block decides how many blocks a sample needs, multiprocessors how many samples are under way.
DEVICES: dict[str, dict[str, int]] = {
    "one-block": {"shared": 64 << 10, "multiprocessors": 2},
    "many-stages": {"shared": 96 << 10, "multiprocessors": 1},
    "clusters": {"shared": 7 << 10, "multiprocessors": 6},  # of two blocks or more, each for several samples
    "large-clusters": {"shared": 5 << 10, "multiprocessors": 32},
}


@pytest.fixture(params=DEVICES)
def run(request: pytest.FixtureRequest) -> Iterator[str]:
    emulated.set_device(**DEVICES[request.param])
    with emulated.emulated():
        yield request.param
    emulated.set_device()


def inputs(case: Case, shape: tuple[int, ...], dtype: torch.dtype, memory: str) -> dict[str, Any]:
    x, parameters = case.inputs(shape, dtype)
    layout = LAYOUTS[memory]
    maps = [layout(make_x(shape, dtype, seed=seed)) for seed in (2, 3)]
    return {"x": layout(x), "parameters": parameters, "residual": maps[0], "grad_y": maps[1], **case.options}


# More samples than clusters; planes of one vector and of several, of an odd number of bytes, and rows of one vector.
@pytest.mark.parametrize("shape", [(5, 32, 7, 8), (3, 64, 7, 7), (4, 24, 4), (2, 8, 2, 50), (3, 40, 6, 4, 2)], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_resident_kernels_compute_the_reference(run, case, dtype, memory, shape, check):
    given = inputs(case, shape, dtype, memory)
    check(case.variant, **given, activation="relu")
    check_gradient_rows(case.variant, **given, activation="relu")


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option(run, case, memory, check):
    given = inputs(case, (3, 32, 4, 6), torch.float32, memory)
    check(case.variant, **given)
    check_gradient_rows(case.variant, **given)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_bits_do_not_depend_on_who_runs_when(run, case, memory, check):
    with emulated.emulated(range(8)):  # compares them itself
        check(case.variant, **inputs(case, (5, 32, 5, 8), torch.bfloat16, memory), activation="relu")


@pytest.mark.parametrize("gpu", DEVICES)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_one_launch_forward_and_two_backward(gpu, memory):
    """The two-phase kernel takes two and three: this is what says that the tests above run the resident ones."""
    x, parameters = DEFAULTS[0].inputs((5, 32, 7, 8))
    x = LAYOUTS[memory](x).requires_grad_()
    emulated.set_device(**DEVICES[gpu])
    try:
        with emulated.emulated(schedules=(0,)):
            before = emulated.launches()
            y = ECA.function(x, *parameters)
            assert emulated.launches() - before == 1
            y.backward(torch.ones_like(x))
            assert emulated.launches() - before == 3
    finally:
        emulated.set_device()


@pytest.mark.sanitized
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gpu", ["many-stages", "clusters"])
@pytest.mark.parametrize("case", [*DEFAULTS, CASES[6]], ids=str)
def test_resident_kernels_are_clean(case, gpu, memory, check):
    """The subset that also runs under the sanitizers."""
    emulated.set_device(**DEVICES[gpu])
    try:
        with emulated.emulated():
            check(case.variant, **inputs(case, (9, 32, 8, 8), torch.float32, memory), activation="relu")
    finally:
        emulated.set_device()
