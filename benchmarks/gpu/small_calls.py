# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.small_calls``: few kernels for compute-sanitizer, which makes each many times slower.

Every gate, dtype and layout, forward and backward, by the resident and by the two-phase kernels. Inputs are made and
results are checked on the CPU, so that hardly any kernel runs on the GPU that is not ours.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from eca_cuda._ext import _C
from eca_cuda.testing import VARIANTS, Variant, channels_last, check_against_reference, make_x

# Each for a way through the kernels (tests/test_gpu_paths.py): samples in the shared memory of a block, with rows of
# narrow vectors, and of a cluster; planes that vectors straddle, some threads to each, and groups of them to a thread;
# samples that take turns on a cluster; and what is no multiple of 16 bytes and goes two-phase.
TURNS = (40, 16, 4, 8)
SHAPES = ((2, 12, 4, 4), (2, 5, 4, 4), (2, 64, 28, 28), (2, 64, 7, 7), (2, 64, 3, 3), TURNS, (2, 5, 5, 7))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Without a rule, only thousands of samples would be more than a GPU takes at once.
RULES = tuple(
    {"direction": direction, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
    | {"n": TURNS[0], "c": TURNS[1], "s": math.prod(TURNS[2:]), "ranks": 16, "stages": 2, "threads": 512}
    for direction, dtype, layout in itertools.product(("forward", "backward"), DTYPES, ("planes", "rows"))
)


def main(device: str, shapes: Sequence[tuple[int, ...]] = SHAPES) -> int:
    """Run the calls on ``device``; AssertionError if a result is wrong."""
    done = 0
    _C.set_tuning(list(RULES))
    try:
        for variant, dtype, shape, rows in itertools.product(VARIANTS, DTYPES, shapes, (False, True)):
            _check(variant, dtype, shape, rows, device)
            done += 1
    finally:
        _C.set_tuning([])
    print(f"{done} calls forward and backward, all within the error budget")
    return 0


def _check(variant: Variant, dtype: torch.dtype, shape: tuple[int, ...], rows: bool, device: str) -> None:
    def make(seed: int) -> Tensor:
        x = make_x(shape, dtype, seed=seed)
        return channels_last(x) if rows else x

    def on_device(*tensors: Tensor, residual: Tensor, **options: str) -> Tensor:
        there = [t.to(device) for t in tensors]
        y: Tensor = variant.function(*there, residual=residual.to(device), **options)
        return y.to("cpu")

    x, residual, grad_y = (make(seed) for seed in range(3))
    parameters = variant.make_parameters(shape[1], dtype)
    check_against_reference(
        variant, x, parameters, residual=residual, grad_y=grad_y, activation="relu", function=on_device
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    sys.exit(main("cpu", SHAPES[:2]) if parser.parse_args().dry else main("cuda"))
