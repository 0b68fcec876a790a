# SPDX-License-Identifier: MIT
"""Violations of the contract in csrc/gates/gate.h are noticed: edits of a copy of the ECA gate must end in a report on
an emulated device with several blocks per sample."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from test_emulated_one_pass import CLUSTERS, on

from eca_cuda.testing import ECA, check_against_reference, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

GATE = "csrc/gates/eca.h"
PAD = "    const A* padded = x.pad(dz, shape.half(), shape.circular());\n"
SUMS = "    x.sums(9, x.scratch, [&](int, auto c) { return x.load(dz, c); });\n"

# Exchanges that `needs` does not declare: more than there are barriers for, and sums without room.
EDITS = {
    "steps": (f"    for (int i = 0; i < 9; ++i) x.pad(dz, shape.half(), shape.circular());\n{PAD}", "__trap", "plain"),
    "numbers": (PAD + SUMS, "a push to outside its destination", "address"),
    "nothing": (PAD, "", "plain"),  # the gate as it is passes
}


def check() -> None:
    """Compares the gate with the reference."""
    x, grad_y = make_x((3, 32, 8, 8)), make_x((3, 32, 8, 8), seed=3)
    with on(CLUSTERS), emulated.emulated(schedules=(0,)):
        check_against_reference(ECA, x, [torch.tensor([[[0.7, 1.3, -0.4]]])], grad_y=grad_y)


def run_with(replacement: str, flavour: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``check`` in a process whose emulated device has the edited gate."""
    shutil.copytree(emulated.ROOT / "csrc", folder / "csrc")
    text = (folder / GATE).read_text()
    assert text.count(PAD) == 1, f"{GATE} has changed"
    (folder / GATE).write_text(text.replace(PAD, replacement))
    edited = folder / "csrc/cuda/one_pass_float.cu"
    others = [source for source in emulated.sources() if source.name != edited.name]
    library = emulated.build_library(flavour, folder.name, [edited, *others])
    here, tools = Path(__file__).parent, emulated.build_tools()
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent))),
        "ECA_CUDA_EMULATED_LIBRARY": str(library),
        **tools.preload(flavour),
    }
    command = [*tools.wrapper(flavour), sys.executable, "-c", "import test_gate_contract; test_gate_contract.check()"]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("name", EDITS)
def test_a_gate_that_exchanges_more_than_it_needs_is_noticed(name: str, tmp_path: Path) -> None:
    replacement, report, flavour = EDITS[name]
    done = run_with(replacement, flavour, tmp_path)
    assert (done.returncode != 0) == bool(report) and report in done.stderr, done.stderr[-3000:]
