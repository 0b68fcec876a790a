# SPDX-License-Identifier: MIT
"""What every test shares: the devices, repeatable settings, and the record of how much of the error budget is used."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from eca_cuda.testing import check_against_reference

# Waking threads for small tensors takes longer than the work; test_determinism carries the results over to several.
torch.set_num_threads(1)

# TF32 would make the eager reference, and with it the error budget, a thousand times coarser.
torch.backends.cudnn.allow_tf32 = False
torch.backends.cuda.matmul.allow_tf32 = False

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
SHARE = "share of the error budget"


def pytest_configure(config: pytest.Config) -> None:
    # A gradient that silently is None, and a batching rule that silently is a loop, are bugs here.
    config.addinivalue_line("filterwarnings", "error:.*autograd kernel was not registered")
    config.addinivalue_line("filterwarnings", "error:There is a performance drop because we have not yet implemented")


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where the tensors live: with ``DEVICES``, the one place that decides where the suite runs."""
    return request.param


@pytest.fixture
def cuda() -> str:
    """For what only a CUDA device can show."""
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
    """torch.empty and its like, in C++ too, then return memory full of NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def check(record_property: Callable[[str, Any], None]) -> Callable[..., None]:
    """``check_against_reference``, remembering the worst case for the summary."""

    def checked(*args: Any, **kwargs: Any) -> None:
        record_property(SHARE, check_against_reference(*args, **kwargs))

    return checked


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", [])
    shares = [(value, r.nodeid) for r in passed for name, value in r.user_properties if name == SHARE]
    if shares:
        worst, where = max(shares)
        terminalreporter.write_line(f"{len(shares)} error budgets, at most {worst:.0%} used: {where}")
