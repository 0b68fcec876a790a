# SPDX-License-Identifier: MIT
"""Stores bypass the caches for outputs that are too large for them, in memory that was used before."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc/cpu"
PROGRAM = """
#include "pages.h"
int main() {
  const int64_t bytes = eca::last_level_cache() / 4;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::printf("%d", eca::goes_past_caches(memory, bytes));
  std::memset(memory, 1, bytes / 2);
  std::printf("%d", eca::goes_past_caches(memory, bytes));
  std::memset(memory, 1, bytes);
  std::printf("%d", eca::goes_past_caches(memory, bytes));
  std::printf("%d", eca::goes_past_caches(memory, bytes - 1));
}
"""


@pytest.mark.skipif(not (SOURCES.is_dir() and shutil.which("g++")), reason="needs the sources and g++")
def test_only_used_memory_of_a_size_that_no_cache_holds(tmp_path: Path) -> None:
    """Memory that was never, half or fully touched; and one byte less than a quarter of the cache."""
    (tmp_path / "main.cpp").write_text(PROGRAM)
    subprocess.run(["g++", "-std=c++17", "-I", SOURCES, "main.cpp", "-o", "main"], cwd=tmp_path, check=True)
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout == "0010"
