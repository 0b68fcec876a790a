# SPDX-License-Identifier: MIT
"""DDP, FSDP2 and DTensor on two processes over gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples" / "distributed.py"

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo: nothing distributed was tested"
)


def torchrun(*arguments: object) -> str:
    """The output of two processes; AssertionError with that output if one fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += map(str, arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_dtensor_ddp_and_fsdp2_for_every_option():
    """Batch sharding keeps maps sharded, compiled too; gradients of parameters are partial sums; second derivatives and
    the gradients of DDP and FSDP2 match a single process; DTensor is not imported early."""
    assert torchrun(TESTS / "two_processes.py").count("every case is right") == 2


def test_losses_of_two_processes_are_those_of_one():
    """The example compares them by the error budget."""
    pytest.importorskip("sklearn")
    lines = torchrun(EXAMPLE, "--steps", 10).splitlines()
    assert [line.split()[0] for line in lines] == ["ddp", "fsdp2", "dtensor"]
    assert all("of the error budget used" in line for line in lines)
