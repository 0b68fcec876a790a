# SPDX-License-Identifier: MIT
"""``python tests/kernels/small_calls.py``: a few calls for compute-sanitizer, which slows kernels down a lot.

Every gate, dtype and layout, forward and backward, plain and with a residual and ReLU, by the one-pass and by the
two-phase kernels. Inputs are made and results are checked on the CPU, so that hardly any other kernel runs on the GPU.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eca_cuda._ext import _C
from eca_cuda.testing import VARIANTS, Variant, channels_last, check_against_reference, make_x

# Each for a way through the kernels (test_gpu_paths.py): a block for a sample; what is no multiple of 16 bytes;
# clusters whose blocks, in rows, share out positions, channels, or both; planes smaller than the vectors that straddle
# them; more threads to a plane than a warp has; and with a rule, slabs of which a block has no room for two, and two
# phases where planes straddle.
LARGE, TWO_PHASE = (2, 16, 64, 64), (2, 16, 7, 7)
SHAPES = (
    *((2, 12, 4, 4), (2, 5, 5, 7), (2, 64, 28, 28), (2, 512, 7, 7), (2, 128, 14, 14), (2, 64, 3, 3), (2, 4, 56, 56)),
    *(LARGE, TWO_PHASE),
)
CALLS = (*itertools.product(SHAPES, ("contiguous", "channels_last")), ((2, 12, 4, 4), "gaps"))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _rule(shape: tuple[int, ...], blocks: int, direction: str, dtype: torch.dtype, layout: str) -> dict[str, Any]:
    what = {"direction": direction, "dtype": str(dtype).removeprefix("torch."), "layout": layout}
    return {**what, "n": shape[0], "c": shape[1], "s": math.prod(shape[2:]), "blocks": blocks, "threads": 0}


RULES = [
    _rule(shape, blocks, *kind)
    for kind in itertools.product(("forward", "backward"), DTYPES, ("planes", "rows"))
    for shape, blocks in ((LARGE, kind[1].itemsize // 2), (TWO_PHASE, -1))
]


def main(device: str, calls: Sequence[tuple[tuple[int, ...], str]] = CALLS) -> int:
    """Run the calls on ``device``; AssertionError if a result is wrong."""
    done = 0
    _C.set_tuning(RULES)
    try:
        for variant, dtype, call, fused in itertools.product(VARIANTS, DTYPES, calls, (False, True)):
            _check(variant, dtype, *call, fused, device)
            done += 1
    finally:
        _C.set_tuning([])
    print(f"{done} calls forward and backward, all within the error budget")
    return 0


def _check(variant: Variant, dtype: torch.dtype, shape: tuple[int, ...], layout: str, fused: bool, device: str) -> None:
    def make(seed: int) -> Tensor:
        x = make_x(shape, dtype, seed=seed)
        return channels_last(x) if layout == "channels_last" else x

    def move(x: Tensor) -> Tensor:  # a copy to a device closes gaps
        there = x.to(device)
        return torch.stack((there, there), 2).select(2, 0) if layout == "gaps" else there

    def on_device(x: Tensor, *parameters: Tensor, residual: Tensor | None, **options: str) -> Tensor:
        there = [p.to(device) for p in parameters]
        added = residual if residual is None else move(residual)
        y: Tensor = variant.function(move(x), *there, residual=added, **options)
        return y.to("cpu")

    x, residual, grad_y = (make(seed) for seed in range(3))
    options: dict[str, Any] = {"residual": residual, "activation": "relu"} if fused else {}
    parameters = variant.make_parameters(shape[1], dtype)
    check_against_reference(variant, x, parameters, grad_y=grad_y, function=on_device, **options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    sys.exit(main("cpu", CALLS[:4]) if parser.parse_args().dry else main("cuda"))
