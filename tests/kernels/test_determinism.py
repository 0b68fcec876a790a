# SPDX-License-Identifier: MIT
"""The same inputs give the same bits: for any number of threads, in every run, with any memory to start from."""

from collections.abc import Callable

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, Case
from layouts import LAYOUTS
from torch import Tensor

from eca_cuda.testing import evaluate, make_x

Results = dict[str, Tensor]

# Fewer samples than threads, a number that no thread count divides, planes of one cache line, many channels, one
# plane for several threads: each is cut into pieces in another way. All have enough work to be cut at all.
SHAPES = {
    "batch1": (1, 40, 41, 43),
    "batch5": (5, 24, 31, 33),
    "batch7": (7, 129, 7, 7),
    "many-small": (3, 700, 4, 5),
    "few-large": (1, 2, 300, 301),
    "1d": (3, 24, 1500),
}


def call(case: Case, shape: tuple[int, ...], dtype: torch.dtype, memory: str, device: str) -> Callable[[], Results]:
    """A function that computes the output and all gradients of a call with residual and relu."""
    x, parameters = case.inputs(shape, dtype, device=device)
    layout = LAYOUTS[memory]
    residual, grad_y = (layout(make_x(shape, dtype, seed=seed, device=device)) for seed in (2, 3))
    options = {"residual": residual, "grad_y": grad_y, "activation": "relu", **case.options}
    return lambda: evaluate(case.variant.function, layout(x), parameters, **options).results


def assert_same_bits(a: Results, b: Results) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(case, shape, dtype, memory, threads):
    again = call(case, shape, dtype, memory, "cpu")
    expected = again()
    for count in (2, 3, 5):
        threads(count)
        assert_same_bits(again(), expected)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_the_number_of_threads_for_any_option(case, memory, threads):
    again = call(case, SHAPES["batch5"], torch.float32, memory, "cpu")
    expected = again()
    threads(3)
    assert_same_bits(again(), expected)


# All variants call the same loops over the map; what is left is the element size and where a row begins.
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "offset", "channels_last-offset"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs_have_the_bits_of_small_ones(dtype, layout, threads):
    """Ten megabytes, which the CPU kernels may write with instructions that bypass the caches."""
    one, parameters = DEFAULTS[0].inputs((1, 24, 161, 163), dtype)
    scales = torch.linspace(-2, 2, 16 // dtype.itemsize, dtype=dtype).view(-1, 1, 1, 1)
    x, residual, grad_y = (LAYOUTS[layout](t * scales) for t in (one, one.flip(1), one.flip(2)))

    def results(x: Tensor, residual: Tensor, grad_y: Tensor) -> Results:
        options = {"residual": residual, "grad_y": grad_y, "activation": "relu"}
        named = evaluate(DEFAULTS[0].variant.function, x, parameters, **options).results
        return {name: named[name] for name in ("y", "grad_x", "grad_residual")}

    alone = [results(*(t[n : n + 1] for t in (x, residual, grad_y))) for n in range(len(x))]
    expected = {name: torch.cat([r[name] for r in alone]) for name in alone[0]}
    for count in (1, 3):
        threads(count)
        assert_same_bits(results(x, residual, grad_y), expected)


# The two dtypes with the most different loops; threads race with each other whatever they add.
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_bits_are_those_of_the_last_run(case, shape, dtype, memory, device, threads):
    threads(2)
    again = call(case, shape, dtype, memory, device)
    expected = again()
    for _ in range(3):
        assert_same_bits(again(), expected)


# Small enough for one thread, where a forgotten element is most likely at an end; and cut into pieces.
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(3, 19, 5, 7), (2, 8, 1, 1), (0, 8, 4, 4), (5, 24, 31, 33)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_read_before_it_is_written(case, shape, memory, device, threads, nan_in_fresh_memory):
    threads(2)
    again = call(case, shape, torch.float32, memory, device)
    poisoned = again()
    torch.use_deterministic_algorithms(False)
    assert_same_bits(poisoned, again())
