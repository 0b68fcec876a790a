# SPDX-License-Identifier: MIT
"""The table of passes in docs/block.md agrees with the bytes that the CUDA kernels move on the emulated device."""

import math
import re
from pathlib import Path

import emulated
import pytest
import torch
from norms import Call
from test_emulated_norm import counted

from eca_cuda import batch_norm_eca

PAGE = Path(__file__).parents[2] / "docs/block.md"

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")


def claimed() -> dict[str, float]:
    """The last column of the table by its first column."""
    rows = re.findall(r"^\| ([a-z][^|]*) \|.*\| ([\d.]+) \|$", PAGE.read_text(), re.MULTILINE)
    return {name: float(maps) for name, maps in rows}


def inference(call: Call) -> dict[str, int]:
    tensors = call.tensors()
    given = (tensors.get(name) for name in ("x", "weight", "norm_weight", "norm_bias", "running_mean", "running_var"))
    with emulated.emulated(schedules=(0,)), torch.no_grad():
        before = emulated.count()
        batch_norm_eca(*given, residual=tensors["residual"], **call.options)
        after = emulated.count()
    # One-pass kernels store y once, by pointers whose stores the emulator does not count.
    return {"loaded": after["loaded"] - before["loaded"], "stored": tensors["x"].nbytes}


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_the_page_says_what_is_moved(memory):
    call = Call((3, 32, 8, 8), torch.float16, memory=memory)
    emulated.set_device(shared=64 << 10)
    try:
        forward, backward = counted(call)
        steps = {"inference": inference(call), "training, forward": forward, "training, backward": backward}
    finally:
        emulated.set_device()
    size = 2 * math.prod(call.shape)
    moved = {name: (step["loaded"] + step["stored"]) / size for name, step in steps.items()}
    assert moved == pytest.approx(claimed(), abs=0.0051)
