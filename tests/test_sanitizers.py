# SPDX-License-Identifier: MIT
"""The marked subset of the kernels' tests under AddressSanitizer with UBSan, and under ThreadSanitizer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

HERE = Path(__file__).parent


@pytest.mark.parametrize("flavour", ["address", "thread"])
def test_kernels_are_clean_under(flavour: str) -> None:
    build = emulated.build_tools()
    environment = {**os.environ, **build.preload(flavour), "ECA_CUDA_EMULATOR": flavour}
    environment.pop("PYTEST_XDIST_WORKER", None)
    # -s: what a sanitizer prints before it ends the process is not captured.
    command = [*build.wrapper(flavour), sys.executable, "-m", "pytest", "-s", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "no:xdist", "-m", "sanitized", str(HERE / "test_emulated_kernels.py")]
    emulated.library_path(flavour)  # built without the sanitizer watching the compiler
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, cwd=HERE.parent)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-6000:]
    assert (passed := re.search(r"(\d+) passed", output)) and int(passed[1]) > 20, output[-2000:]
