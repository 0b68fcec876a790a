# SPDX-License-Identifier: MIT
"""A GPU adds in the same order as the emulated device, so their results have the same bits.

nvcc rounds a product and a sum once where g++ rounds twice. Here such products are exact: taps and grad_y are powers of
two, and the gate is hard_sigmoid, which calls no library function. Without a GPU the emulated device replaces it, so
that the test itself is tested.
"""

import itertools
from collections.abc import Iterator

import emulated
import pytest
import torch
from layouts import LAYOUTS
from small_calls import DTYPES, RULES, SHAPES
from torch import Tensor

from eca_cuda.testing import ECA, evaluate, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

HERE = "cuda" if torch.cuda.is_available() else "emulated"
# Every way through the kernels, which test_gpu_paths.py checks against plans; and planes larger than a tile of the
# two-phase kernels.
MEMORY = ("contiguous", "channels_last", "offset")
CALLS = [*itertools.product((*SHAPES, (2, 3, 130, 131)), DTYPES, MEMORY, (False, True))]


def like_the_gpu() -> dict[str, int]:
    """The settings of an emulated device of the size of the GPU here, or of an H100."""
    if HERE == "emulated":
        return {"multiprocessors": 132, "threads": 1024, "shared": 227 << 10, "l2": 50 << 20}
    here = torch.cuda.get_device_properties(0)
    return {
        "multiprocessors": here.multi_processor_count,
        "threads": 1024,
        "shared": here.shared_memory_per_block_optin,
        "l2": here.L2_cache_size,
        "capability": 10 * here.major + here.minor,
    }


def powers_of_two(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    signs_and_sizes = torch.tensor([-2, -1, -0.5, 0.5, 1, 2], dtype=dtype)
    return signs_and_sizes[torch.randint(6, shape)]


def results(shape: tuple[int, ...], dtype: torch.dtype, memory: str, relu: bool, device: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    maps = make_x(shape, dtype), powers_of_two(shape, dtype)
    x, grad_y = (LAYOUTS[memory](t.to(device)) for t in maps)  # laid out there: copies may not keep the layout
    weight = powers_of_two((1, 1, 5), dtype).to(device)
    options = {"activation": "relu"} if relu else {}
    found = evaluate(ECA.function, x, [weight], grad_y=grad_y, gate="hard_sigmoid", **options).results
    return {name: found[name].cpu() for name in ("y", "grad_x")}


def on_emulated_device(
    shape: tuple[int, ...], dtype: torch.dtype, memory: str, relu: bool, **device: int
) -> dict[str, Tensor]:
    emulated.set_device(**device)
    try:
        with emulated.emulated(schedules=(0,)):
            return results(shape, dtype, memory, relu, "cpu")
    finally:
        emulated.set_device()


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    """The same plans on both devices."""
    emulated.set_tuning(RULES)
    yield
    emulated.set_tuning([])


@pytest.mark.parametrize(("shape", "dtype", "memory", "relu"), CALLS, ids=str)
def test_the_gpu_gives_the_bits_of_the_emulated_device(shape, dtype, memory, relu):
    expected = on_emulated_device(shape, dtype, memory, relu, **like_the_gpu())
    if HERE == "cuda":
        ours = results(shape, dtype, memory, relu, "cuda")
    else:
        ours = on_emulated_device(shape, dtype, memory, relu, **like_the_gpu())
    for name in expected:
        assert torch.equal(ours[name], expected[name]), f"{name}: {(ours[name] != expected[name]).sum()} differ"


def test_another_order_of_sums_would_be_noticed():
    """The same maps on a device whose blocks have 32 threads."""
    one, other = (
        on_emulated_device((2, 64, 28, 28), torch.float32, "contiguous", False, **like_the_gpu() | {"threads": threads})
        for threads in (1024, 32)
    )
    assert not torch.equal(one["y"], other["y"])
