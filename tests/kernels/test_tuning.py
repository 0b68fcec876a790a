# SPDX-License-Identifier: MIT
"""The tuning table reaches the plan, from a file and from the environment; errors in it are reported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import eca_cuda
from eca_cuda._ext import _C

RULE = {
    "direction": "forward",
    "dtype": "float16",
    "layout": "planes",
    "n": 0,
    "c": 256,
    "s": 3136,
    "blocks": 12,
    "threads": 128,
}


def planned() -> dict[str, Any]:
    plan: dict[str, Any] = _C.plan(256, 256, 3136, "float16", "contiguous", "eca", "forward", "h100")
    return plan


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    eca_cuda.load_tuning(None)


def test_a_table_is_followed_and_forgotten(tmp_path: Path) -> None:
    before = planned()
    (tmp_path / "table.json").write_text(json.dumps([RULE]))
    assert eca_cuda.load_tuning(tmp_path / "table.json") == 1
    assert (planned()["blocks_per_sample"], planned()["threads"]) == (12, 128)
    assert eca_cuda.load_tuning(None) == 0
    assert planned() == before != {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "table.json: Expecting"),
        ("{}", "expected a list of objects"),
        ("[7]", "expected a list of objects"),
        (json.dumps([{**RULE, "blocks": -2}]), "rules[0]: blocks: expected an integer from -1 to 65536, got -2"),
        (json.dumps([{**RULE, "parts": "all"}]), "rules[0]: parts: expected an integer from 0 to 65536, got 'all'"),
        (json.dumps([RULE, {**RULE, "dtype": "half"}]), "dtype: expected one of"),
        (json.dumps([{k: v for k, v in RULE.items() if k != "c"}]), "'c'"),
        (json.dumps([{**RULE, "c": "many"}]), "table.json"),
    ],
)
def test_a_bad_table_is_refused_and_changes_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "table.json").write_text(text)
    before = planned()
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        eca_cuda.load_tuning(tmp_path / "table.json")
    assert planned() == before


def test_the_environment_names_a_table(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps([RULE]))
    code = "import test_tuning; print(test_tuning.planned()['threads'])"
    environment = {**os.environ, "ECA_CUDA_TUNING": str(tmp_path / "table.json")}
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(here)!r}); {code}"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=here.parent,
    )
    assert done.stdout.strip() == "128", done.stderr
