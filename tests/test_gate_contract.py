# SPDX-License-Identifier: MIT
"""What csrc/gates/gate.h allows a gate holds on clusters, and what it forbids is noticed: edits of a copy of the ECA
gate for kernel_size 1, which needs no neighbour, on an emulated device with two blocks to a sample."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from test_emulated_resident import on

from eca_cuda.testing import ECA, check_against_reference, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

GATE = "csrc/gates/eca.h"
SCHEDULES = 12  # orders in which blocks run
SHAPE = (12, 32, 8, 8)
DEVICE = {"multiprocessors": 2, "threads": 64, "shared": 48 << 10}
BACKWARD = "    const A* m = x.pad(0, mean, k / 2, args.circular());\n"

# Blocks tell each other nothing in backward but the parameters' gradients, and only the first one waits for them.
MEETS_NOBODY = {BACKWARD: "    const A* m = mean;\n", "= x.pad(1, field, k / 2, args.circular())": "= field"}
MANY_STEPS = {BACKWARD: BACKWARD + "    for (int i = 0; i < 12; ++i) x.sum([&](auto c) { return x.load(mean, c); });\n"}
MANY_NUMBERS = {BACKWARD: BACKWARD + "    for (int i = 0; i < 3; ++i) x.pad(0, field, k / 2, args.circular());\n"}


def check() -> None:
    """Every schedule gives the reference's results."""
    rule = {
        "dtype": "float32",
        "layout": "planes",
        "n": 0,
        "c": SHAPE[1],
        "s": 64,
        "ranks": 2,
        "stages": 2,
        "threads": 0,
    }
    x, grad_y = make_x(SHAPE), make_x(SHAPE, seed=3)
    with on(DEVICE, [rule | {"direction": direction} for direction in ("forward", "backward")]):
        for schedule in range(SCHEDULES):
            with emulated.emulated(schedules=(schedule,)):
                check_against_reference(ECA, x, [torch.tensor([[[1.3]]])], grad_y=grad_y)


def run_with(edits: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """``check`` in a process whose emulated device has the edited gate."""
    shutil.copytree(emulated.ROOT / "csrc", folder / "csrc")
    text = (folder / GATE).read_text()
    for old, new in edits.items():
        assert text.count(old) == 1, f"{GATE} has changed: {old!r}"
        text = text.replace(old, new)
    (folder / GATE).write_text(text)
    edited = folder / "csrc/cuda/resident_float.cu"
    others = [source for source in emulated.sources() if source.name != edited.name]
    library = emulated.build_library("plain", folder.name, [edited, *others])
    here = Path(__file__).parent
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent))),
        "ECA_CUDA_EMULATED_LIBRARY": str(library),
    }
    command = [sys.executable, "-c", "import test_gate_contract; test_gate_contract.check()"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_gate_whose_blocks_never_meet_is_right_under_every_schedule(tmp_path: Path) -> None:
    done = run_with(MEETS_NOBODY, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("edits", [MANY_STEPS, MANY_NUMBERS], ids=["steps", "numbers"])
def test_a_gate_that_exchanges_more_than_there_is_room_for_stops(edits: dict[str, str], tmp_path: Path) -> None:
    done = run_with(edits, tmp_path)
    assert done.returncode != 0 and "__trap" in done.stderr, done.stderr[-3000:]
