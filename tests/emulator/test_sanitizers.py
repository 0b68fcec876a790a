# SPDX-License-Identifier: MIT
"""The marked subset of the kernels' tests under AddressSanitizer with UBSan, and under ThreadSanitizer."""

import re

import emulated
import pytest

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")


@pytest.mark.parametrize("flavour", ["address", "thread"])
def test_kernels_are_clean_under(flavour: str) -> None:
    status, output = emulated.run_sanitized_tests(flavour, emulated.build_library(flavour))
    assert status == 0, output[-6000:]
    assert (passed := re.search(r"(\d+) passed", output)) and int(passed[1]) > 20, output[-2000:]
