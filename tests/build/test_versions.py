# SPDX-License-Identifier: MIT
"""The package promises the versions that were tested, and all places that name the oldest one agree."""

import json
import re
from pathlib import Path

import pytest
import versions

import eca_cuda._ext

ROOT = Path(__file__).parents[2]
OLDEST = "2.10"
RESULTS = json.loads(versions.RESULTS.read_text())


def value(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))
    assert found, f"{pattern} is not in {file}"
    return found[1]


@pytest.mark.parametrize(
    ("pattern", "file"),
    [
        (r'dependencies = \["torch>=([\d.]+)"\]', "pyproject.toml"),
        (r"(?m)^TORCHES \?= ([\d.]+) ", "Makefile"),
        (r'"torch >= ([\d.]+) is needed', "setup.py"),
        (r"what: torch-([\d.]+),", ".github/workflows/ci.yml"),
        (r"for torch in ([\d.]+) ", ".ci/run"),
        (r"torch ([\d.]+) or later", "docs/install.md"),
    ],
)
def test_every_place_names_the_same_oldest_torch(pattern, file):
    assert value(pattern, file) == OLDEST


def test_what_is_compiled_and_what_is_loaded_ask_for_that_torch():
    number = int(value(r'STABLE_ABI = "(0x\w+)"', "setup.py"), 16)
    assert f"{number >> 56}.{number >> 48 & 255}" == OLDEST
    assert versions.release(OLDEST) == eca_cuda._ext._MINIMUM_TORCH


def test_the_pages_show_what_was_recorded():
    assert versions.between(versions.PAGE.read_text()) == versions.table(RESULTS)
    assert versions.between(versions.README.read_text()) == versions.summary(RESULTS)


def test_the_readme_names_gpus_versions_and_limits_from_what_was_recorded(monkeypatch, tmp_path):
    def on_gpu(name: str, torch: str, check: str) -> None:
        head = {"environment": {"torch": torch, "gpu": {"name": f"NVIDIA {name} 80GB"}}}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(head) + "\n" + json.dumps({"check": check}) + "\n")

    on_gpu("A1", "2.12.0", "tests forward")
    on_gpu("B2", "2.12.1", "ncu layer1")  # measured, but not tested
    monkeypatch.setattr(versions, "ON_GPUS", tmp_path)
    monkeypatch.setattr(versions, "FEATURES", {"all": {}, "some": {"2.10": "not much", "2.11": "little"}})
    runs = [
        ("2.12.1+cpu", "3.10.1"),
        ("2.12.0", "3.11.0"),
        ("2.11.0", "3.9.1"),
        ("2.11.0", "3.11.1"),
        ("2.10.2", "3.9.0"),
    ]
    recorded = [{"torch": torch, "python": python, "passed": 1000 + i} for i, (torch, python) in enumerate(runs)]
    assert versions.summary(recorded).splitlines()[2:] == [
        "| 2.12 | 3.10 to 3.11 | 1,000 to 1,001 tests | A1 | yes | yes |",
        "| 2.11 | 3.9, 3.11 | 1,002 to 1,003 tests | - | yes | little |",
        "| 2.10 | 3.9 | 1,004 tests | - | yes | not much |",
    ]


def test_every_version_was_tested_whole_and_nothing_failed():
    wheels = [r for r in RESULTS if not versions.is_of_sources(r)]
    assert sorted({versions.release(r["torch"]) for r in wheels}) == sorted(
        versions.release(version) for version in value(r"(?m)^TORCHES \?= (.+)", "Makefile").split()
    )
    pythons = {versions.release(r["python"]) for r in RESULTS if versions.is_of_sources(r)}
    assert pythons >= {versions.release(version) for version in value(r"(?m)^PYTHONS \?= (.+)", "Makefile").split()}
    assert all(r["failed"] == r["error"] == 0 for r in RESULTS)
    assert all(r["passed"] > 4000 for r in wheels) and all(r["passed"] > 500 for r in RESULTS)


def test_the_classifiers_name_the_pythons_that_were_tested():
    listed = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert listed == sorted({".".join(map(str, versions.release(r["python"]))) for r in RESULTS}, key=versions.release)
    assert value(r'requires-python = ">=([\d.]+)"', "pyproject.toml") == listed[0]
