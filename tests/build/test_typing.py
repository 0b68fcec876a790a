# SPDX-License-Identifier: MIT
"""Type checkers accept right calls and refuse wrong ones: mypy and pyright, strict, read tests/build/user_code.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER_CODE = ROOT / "tests/build/user_code.py"


def run(*command: object, cwd: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MYPYPATH": ""}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with nothing but the user's code."""
    shutil.copy(USER_CODE, tmp_path)
    return tmp_path


def test_mypy_strict(user):
    pytest.importorskip("mypy")
    options = ["--strict", "--warn-unused-ignores", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'user'}"]
    run(sys.executable, "-m", "mypy", *options, USER_CODE.name, cwd=user)


def test_pyright_strict(user):
    pytest.importorskip("pyright")
    if not shutil.which("node"):
        pytest.skip("pyright needs node, which is not installed: types were checked by mypy only")
    settings = {
        "strict": [USER_CODE.name],
        "extraPaths": [str(ROOT)],
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (user / "pyrightconfig.json").write_text(json.dumps(settings))
    run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, cwd=user)
