# SPDX-License-Identifier: MIT
"""Shared by all tests: devices, reproducible settings, and a record of the used share of the error budget."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import emulated
import pytest
import torch

from eca_cuda._ext import _C
from eca_cuda.testing import check_against_reference

# Threads cost more than they gain for small tensors; test_determinism compares with several threads.
torch.set_num_threads(1)

# TF32 would make the eager reference, and with it the error budget, a thousand times coarser.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
# The test files that also run on the emulated device (tests/emulator).
EMULATED = {"amp", "backward", "batch_norm_eca", "determinism", "errors", "forward", "gradcheck"}
EMULATED |= {"nonfinite", "properties", "saved_memory", "sizes"}
NO_EMULATOR = emulated.missing()
# Tests that need the repository; make test-versions runs the others on a wheel.
OF_THE_REPOSITORY = ["bench", "build", "emulator"]
OF_THE_REPOSITORY += [f"kernels/test_{name}.py" for name in ("cuda_bits", "gpu_paths", "plan", "sass")]
if not (Path(__file__).parents[1] / "csrc").exists():
    collect_ignore = OF_THE_REPOSITORY
SHARE = "share of the error budget"


def pytest_configure(config: pytest.Config) -> None:
    # Tests that run make must not become part of the outer `make test`.
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        os.environ.pop(name, None)
    # Warnings of a missing gradient, and of a batching rule that falls back to a loop, are errors.
    config.addinivalue_line("filterwarnings", "error:.*autograd kernel was not registered")
    config.addinivalue_line("filterwarnings", "error:There is a performance drop because we have not yet implemented")


def pytest_report_header() -> str:
    return f"eca_cuda: built {_C.build_info()['built']}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes ``device`` by ``DEVICES`` and ``EMULATED``."""
    if "device" in metafunc.fixturenames:
        with_emulator = not NO_EMULATOR and metafunc.module.__name__.removeprefix("test_") in EMULATED
        devices = DEVICES + ("emulated",) * with_emulator
        metafunc.parametrize("device", devices, indirect=True, scope="session")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device of the tensors."""
    return "cpu" if request.param == "emulated" else request.param


@pytest.fixture(autouse=True, scope="module")
def compiled_anew() -> Iterator[None]:
    """Resets Dynamo after each file, as it compiles only about eight versions of a function."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def emulation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the test on the emulated device if ``device`` is that."""
    callspec = getattr(request.node, "callspec", None)
    wanted = callspec is not None and callspec.params.get("device") == "emulated"
    with emulated.emulated() if wanted else nullcontext():
        yield


@pytest.fixture
def cuda() -> str:
    """Skips the test without a CUDA device."""
    if "cuda" not in DEVICES:
        pytest.skip("no CUDA device: everything ran on the CPU only")
    return "cuda"


@pytest.fixture(autouse=True)
def same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def nan_in_fresh_memory() -> Iterator[None]:
    """Makes torch.empty and similar functions, in C++ too, return memory full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def check(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """``check_against_reference``, which records the used share of the budget."""

    def checked(*args: Any, **kwargs: Any) -> None:
        record_property(SHARE, check_against_reference(*args, **kwargs))

    return checked


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", [])
    if NO_EMULATOR:
        terminalreporter.write_line(f"CUDA kernels were NOT run on the emulated device: {NO_EMULATOR}", yellow=True)
    shares = [(value, r.nodeid) for r in passed for name, value in r.user_properties if name == SHARE]
    if shares:
        worst, where = max(shares)
        terminalreporter.write_line(f"{len(shares)} error budgets, at most {worst:.0%} used: {where}")
