# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.small_calls``: few kernels for compute-sanitizer, which makes each many times slower.

Every gate, dtype and layout, forward and backward, by the resident and by the two-phase kernels. Inputs are made and
results are checked on the CPU, so that hardly any kernel runs on the GPU that is not ours.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from eca_cuda.testing import VARIANTS, Variant, channels_last, check_against_reference, make_x

# Dense samples of 16-byte multiples stay in shared memory; planes of 35 elements go two-phase. The last two need
# several blocks for a sample, and several samples for a block.
SHAPES = ((2, 16, 4, 8), (2, 5, 5, 7), (2, 256, 28, 28), (300, 16, 4, 4))


def main(device: str, shapes: Sequence[tuple[int, ...]] = SHAPES) -> int:
    """Run the calls on ``device``; AssertionError if a result is wrong."""
    done = 0
    for variant, dtype, shape, rows in itertools.product(
        VARIANTS, (torch.float32, torch.float16, torch.bfloat16), shapes, (False, True)
    ):
        _check(variant, dtype, shape, rows, device)
        done += 1
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
