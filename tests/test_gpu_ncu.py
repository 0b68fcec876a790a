# SPDX-License-Identifier: MIT
"""What ncu says of a launch becomes figures in the record; what is not understood is shown and called so."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import record, steps

ROOT = Path(__file__).parents[1]

# Two launches as ncu 2024 writes them with --csv, shortened to fewer metrics; the rules at the end of a row are longer.
HEADER = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name","Rule Type","Rule Description",'
    '"Estimated Speedup Type","Estimated Speedup"'
)
FIGURES = {
    "Duration": ("us", "1,101.31"),
    "Elapsed Cycles": ("cycle", "151,204"),
    "DRAM Throughput": ("%", "91.20"),
    "L2 Hit Rate": ("%", "33.51"),
    "Achieved Occupancy": ("%", "24.80"),
    "Registers Per Thread": ("register/thread", "64"),
}


def rows(launch: int, kernel: str) -> list[str]:
    of = f'"{launch}","77","python3.12","127.0.0.1","{kernel}","1","13","(512, 1, 1)","(264, 1, 1)","0","9.0"'
    made = [f'{of},"A section","{name}","{unit}","{value}","","","","",""' for name, (unit, value) in FIGURES.items()]
    rule = f'{of},"A section","","","","Bound","INF","The kernel, it says, is ""bound"" by memory.","",""'
    return [*made, rule]


OUTPUT = "\n".join(
    [
        "==PROF== Connected to process 77 (/usr/bin/python3.12)",
        '==PROF== Profiling "forward" - 0: 0%....50%....100% - 9 passes',
        "a line of the program",
        "==PROF== Disconnected from process 77",
        HEADER,
        *rows(0, "void eca::eca_backward_kernel<eca::EcaGate, __half, 0>(Args)"),
        *rows(1, "eca_parameter_gradients_kernel"),
        "==WARNING== Note: Running with unmodified GPU clocks.",
    ]
)
EXPECTED = {
    "Duration": "1,101.31 us",
    "DRAM Throughput": "91.20 %",
    "L2 Hit Rate": "33.51 %",
    "Achieved Occupancy": "24.80 %",
    "Registers Per Thread": "64 register/thread",
}


@pytest.fixture
def run(tmp_path: Path):
    """Run the step's first command with a program in the place of ncu that says this.

    Returns the status, all that is printed, and what was found.
    """

    def runner(says: str, status: int = 0) -> tuple[int, str, list[dict[str, Any]]]:
        (tmp_path / "said").write_text(says)
        program = tmp_path / "ncu"
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/said\nexit {status}\n')
        program.chmod(0o755)
        (step,) = (step for step in steps.STEPS if step.name == "profile")
        command = step.commands(steps.Run(tmp_path, dry=False))[0]
        here = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command.arguments, cwd=ROOT, env=here, capture_output=True, text=True)
        assert not done.stderr and command.needs == "ncu"
        path = tmp_path / record.NAME
        lines = record.read(path) if path.exists() else []
        return done.returncode, done.stdout, [launch for line in lines for launch in line.found["profiled"]]

    return runner


def test_figures_of_every_launch_go_into_the_record(run, tmp_path: Path) -> None:
    status, said, found = run(OUTPUT)
    call = "resnet50.layer1.n256 forward"
    kernels = ("void eca::eca_backward_kernel<eca::EcaGate, __half, 0>(Args)", "eca_parameter_gradients_kernel")
    assert found == [{"call": call, "kernel": kernel, "figures": EXPECTED} for kernel in kernels]
    assert status == 0 and OUTPUT in said and said.splitlines()[-1] == "2 launches; all figures"
    asked = (tmp_path / "asked").read_text()
    assert "--csv" in asked and "--section LaunchStats" in asked and asked.endswith(f"benchmarks.gpu.one_call {call}\n")


def test_a_figure_that_is_missing_is_named(run) -> None:
    status, said, found = run(OUTPUT.replace("L2 Hit Rate", "Another Name"))
    assert status == 0 and said.splitlines()[-1] == "2 launches; not everywhere: L2 Hit Rate"
    assert [launch["figures"].keys() for launch in found] == 2 * [EXPECTED.keys() - {"L2 Hit Rate"}]


@pytest.mark.parametrize(
    "says",
    ["==ERROR== ERR_NVGPUCTRPERM - no permission\n==WARNING== No kernels were profiled.", '"ID","Other"\n"0","1"', ""],
)
def test_what_is_not_understood_is_shown_and_fails(run, says: str) -> None:
    assert run(says) == (1, f"{says}\nexpected the table of ncu --csv, got what stands above\n", [])


def test_a_failure_of_ncu_is_one_whatever_it_said(run) -> None:
    """Not its own status: some of those of a step's command have a meaning."""
    assert run(OUTPUT, status=record.DEVICE_LOST)[0] == 1
