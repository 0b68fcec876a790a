# SPDX-License-Identifier: MIT
"""Packages: the sdist is complete, and the package also runs under another name in another folder.

Imports inside the package are relative, and its only dependencies are torch and the standard library.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def version() -> str:
    found = re.search(r'"(.+)"', (ROOT / "eca_cuda/_version.py").read_text(encoding="utf-8"))
    assert found
    return found[1]


def backend(hook: str, folder: Path) -> str:
    """The output of a setuptools hook, run as by pip in ``folder``; it writes its result beside ``folder``."""
    command = [sys.executable, "-c", f"from setuptools.build_meta import {hook}; {hook}('..')"]
    environment = {**os.environ, "ECA_CUDA_BUILD": "cpu"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_sdist_holds_everything_that_building_and_testing_need(tmp_path: Path) -> None:
    """It is made from a copy, without the files of earlier builds; its metadata can be prepared from it."""
    files = [name for name in tracked() if (ROOT / name).is_file()]
    for name in files:
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    backend("build_sdist", tmp_path / "source")
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
        sdist.extractall(tmp_path / "unpacked", filter="data")
    wanted = {name for name in files if not name.startswith((".git", ".ci/", ".pre-commit"))}
    assert wanted - packed == set()
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    said = backend("prepare_metadata_for_build_wheel", unpacked)
    (metadata,) = unpacked.parent.glob("*.dist-info/METADATA")
    facts = message_from_string(metadata.read_text(encoding="utf-8"))
    assert unpacked.name == f"eca_cuda-{facts['Version']}" == f"eca_cuda-{version()}"
    assert facts["Requires-Dist"] == "torch>=2.10" and facts["License-File"] == "LICENSE"
    assert "[eca_cuda] building CPU kernels only: ECA_CUDA_BUILD=cpu" in said


def test_imports_inside_the_package_are_relative_and_outside_torch_alone() -> None:
    for path in (ROOT / "eca_cuda").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {"torch"} | set(sys.stdlib_module_names), f"{path.name}: {roots}"


def test_the_package_runs_from_another_folder_under_another_name(tmp_path: Path) -> None:
    """It converts, pickles and loads there: no module is looked up by its name in the repository."""
    shutil.copytree(ROOT / "eca_cuda", tmp_path / "renamed_eca", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests/lookalikes.py", tmp_path)
    program = """
import pickle, sys, torch
from lookalikes import eca_layer
import renamed_eca as eca_cuda

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.eca = torch.nn.Conv2d(8, 8, 1), eca_layer(8)

    def forward(self, x):
        return torch.relu(self.eca(self.conv(x)) + x)

block, x = Block(), torch.randn(2, 8, 5, 5)
expected = block(x)
eca_cuda.convert(block, fuse_residual=True)
torch.testing.assert_close(pickle.loads(pickle.dumps(block))(x), expected)
assert "eca_cuda" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_info_names_version_and_build() -> None:
    done = subprocess.run([sys.executable, "-m", "eca_cuda.info", "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'"eca_cuda": "{version()}"' in done.stdout
