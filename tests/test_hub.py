# SPDX-License-Identifier: MIT
"""The project for Hugging Face's kernel-builder (``build.toml``, ``make hub``) is complete and says what setup.py says;
what it builds shares a process with other builds."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from torch.utils import cpp_extension

import eca_cuda

ROOT = Path(__file__).parents[1]
# What setup.py builds with pybind11, whose place torch_binding.cpp takes.
PYBIND11 = {"csrc/ops.cpp", "csrc/plan/python.cpp", "csrc/plan/python.h"}


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "build.toml").read_text(encoding="utf-8"))


def value(pattern: str, file: str) -> str:
    found = re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))
    assert found, f"{pattern} is not in {file}"
    return found[1]


def test_every_source_is_listed_once(build):
    listed = build["torch"]["src"] + build["kernel"]["eca-cuda"]["src"]
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".cu", ".cuh")}
    assert sorted(listed) == sorted(files - PYBIND11 | {"torch-ext/torch_binding.cpp"})
    assert not [name for name in build["torch"]["src"] if name.startswith("csrc/cuda/")], (
        "the CPU variant has these too"
    )


def test_facts_that_stand_elsewhere_agree(build):
    general, kernel = build["general"], build["kernel"]["eca-cuda"]
    assert general["name"].replace("-", "_") == eca_cuda.__name__
    assert general["license"] == value(r'(?m)^license = "(.+)"', "pyproject.toml")
    assert general["backends"] == ["cpu", "cuda"] == list(build["torch"]["stable-abi"])
    major, minor = re.findall("..", value(r'STABLE_ABI = "0x(\w{4})', "setup.py"))
    assert set(build["torch"]["stable-abi"].values()) == {f"{int(major, 16)}.{int(minor, 16)}"}
    architectures = value(r'or "(7\.5;[^"]+)"', "setup.py")
    assert ";".join(kernel["cuda-capabilities"]) == architectures
    for flags in (build["torch"]["cxx-flags"], kernel["cxx-flags"]):
        assert {"-fvisibility=hidden", "-ffp-contract=off"} <= set(flags)
        assert all(flag in (ROOT / "setup.py").read_text(encoding="utf-8") for flag in flags[1:3])


def run(*command: object, cwd: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def lay_out(folder: Path) -> None:
    run("make", "-s", "hub", f"HUB={folder}", cwd=ROOT)


def test_the_layout_is_the_one_that_kernel_builder_wants(tmp_path, build):
    lay_out(tmp_path / "hub")
    files = {str(p.relative_to(tmp_path / "hub")) for p in (tmp_path / "hub").rglob("*") if p.is_file()}
    assert {"build.toml", "flake.nix", "LICENSE", "torch-ext/eca_cuda/__init__.py"} <= files
    assert {*build["torch"]["src"], *build["kernel"]["eca-cuda"]["src"]} <= files
    assert not [name for name in files if name.endswith((".so", ".pyc", "_ops.py"))]
    package = {p.name for p in (ROOT / "eca_cuda").glob("*.py")}
    assert {name.removeprefix("torch-ext/eca_cuda/") for name in files if name.endswith(".py")} == package


NAME = "_eca_cuda_cpu_1a2b3c4"
RUN = f"""
import importlib.util, sys, torch
import eca_cuda

# As kernels.get_kernel does: by path, under the build's own name.
spec = importlib.util.spec_from_file_location("{NAME}", "{NAME}/__init__.py")
hub = sys.modules["{NAME}"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub)

from {NAME} import info, ops
assert ops.VARIANTS["eca"].infer.namespace == "{NAME}"
assert info.collect()["built_with"]["eca_cuda"] is None
assert info.collect()["built"] == "CPU kernels by kernel-builder" != eca_cuda.info.collect()["built"]
results = []
for package in (eca_cuda, hub):
    torch.manual_seed(0)
    x, w = torch.randn(2, 8, 5, 5, requires_grad=True), torch.randn(1, 1, 3, requires_grad=True)
    y = package.eca(x, w, residual=x, activation="relu", padding_mode="circular", gate="hard_sigmoid")
    y.square().sum().backward()
    compiled = torch.compile(package.BidirectionalECA(32), backend="aot_eager", fullgraph=True)
    results.append([y.detach(), x.grad, w.grad, compiled(torch.ones(1, 32, 3, 3)).detach()])
assert all(map(torch.equal, *results))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="calls g++ with Linux's flags")
def test_a_build_shares_a_process_with_another_and_gives_the_same_bits(tmp_path, build):
    """Compiled from what build.toml lists and nothing else, with its flags and those of kernel-builder."""
    lay_out(tmp_path / "hub")
    sources = [tmp_path / "listed" / name for name in build["torch"]["src"]]
    for file in sources:
        file.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / file.relative_to(tmp_path / "listed")).rename(file)
    package = (tmp_path / "hub/torch-ext/eca_cuda").rename(tmp_path / NAME)
    (package / "_ops.py").write_text(f"import torch\nfrom . import {NAME}\nops = torch.ops.{NAME}\n")
    flags = ["-O0", "-fPIC", "-shared", "-std=c++17", "-DPy_LIMITED_API=0x03090000", f"-DTORCH_EXTENSION_NAME={NAME}"]
    flags += ["-DTORCH_TARGET_VERSION=" + value(r'STABLE_ABI = "(\w+)"', "setup.py")]
    flags += [flag.replace('\\"', '"') for flag in build["torch"]["cxx-flags"]]
    folders = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    folders += [tmp_path / "listed" / folder for folder in build["torch"]["include"]]
    torch = [f"-L{cpp_extension.library_paths()[0]}", "-ltorch_cpu", "-lc10"]
    compiled = [file for file in sources if file.suffix == ".cpp"]
    run(
        "g++",
        *flags,
        *(f"-I{folder}" for folder in folders),
        *compiled,
        "-o",
        package / f"{NAME}.abi3.so",
        *torch,
        cwd=ROOT,
    )
    run(sys.executable, "-c", "import eca_cuda.info\n" + RUN, cwd=tmp_path)
