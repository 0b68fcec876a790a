# SPDX-License-Identifier: MIT
"""Adds a fourth gate, Squeeze-and-Excitation, to a copy of the sources, by the steps of csrc/README.md alone.

Its two files are in ``squeeze_excitation/``; with the edits below, they are an example to follow.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import emulated
import pytest

ROOT = Path(__file__).parents[2]
NAME = "squeeze_excitation"
FILES = {"csrc/gates": f"{NAME}.h", "eca_cuda/variants": f"{NAME}.py"}


@dataclass(frozen=True)
class Edit:
    """Inserts ``text`` after ``after``, which the file contains once."""

    file: str
    after: str
    text: str

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        before = path.read_text()
        assert before.count(self.after) == 1, f"{self.file} has no single {self.after!r}"
        path.write_text(before.replace(self.after, self.after + self.text))


EDITS = [
    Edit("csrc/gates/registry.h", '#include "multi_kernel.h"\n', f'#include "{NAME}.h"\n'),
    Edit("csrc/gates/registry.h", "MultiKernelGate, BidirectionalGate", ", SqueezeExcitationGate"),
    Edit(
        "tests/cases.py",
        "from eca_cuda.testing import BIDIRECTIONAL, ECA, MULTI_KERNEL, Variant, make_x\n",
        f"from eca_cuda.variants.{NAME} import SQUEEZE_EXCITATION\n",
    ),
    Edit(
        "tests/cases.py",
        '    Case("bidirectional", BIDIRECTIONAL, {"hidden": 2}),\n',
        f'    Case("{NAME}", SQUEEZE_EXCITATION, {{"hidden": 3}}),\n'
        f'    Case("{NAME}-hard", SQUEEZE_EXCITATION, {{"hidden": 20}}, {{"gate": "hard_sigmoid"}}),\n',
    ),
]

# Of the tests that run every variant: each dtype, option and kernel, the first two derivatives, compilation, tracers.
TESTS = {
    "kernels/test_forward.py": "every_option",
    "kernels/test_backward.py": "every_option",
    "kernels/test_gradcheck.py": "every_option",
    "kernels/test_lengths.py": "",
    "kernels/test_channels_dim.py": "every_option",
    "emulator/test_emulated_one_pass.py": "every_option or who_runs_when",
    "torch/test_registration.py": "opcheck",
    "torch/test_compile.py": "one_graph",
}

# timm's module with the same parameters, forward and backward.
BESIDE_TIMM = """
import torch
from timm.layers import SEModule
import eca_cuda

ours, theirs = eca_cuda.SqueezeExcitation(64), SEModule(64, rd_channels=4)
ours.load_state_dict(theirs.state_dict(), strict=True)
x = torch.randn(3, 64, 7, 7)
found = []
for layer in (ours.double(), theirs.double()):
    t = x.double().requires_grad_()
    y = layer(t)
    found.append([y, *torch.autograd.grad(y.square().sum(), [t, *layer.parameters()])])
for a, b in zip(*found, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
assert type(y.grad_fn).__name__ != "_FusedBackward" and "Fused" in type(found[0][0].grad_fn).__name__
compiled = torch.compile(ours, backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(x.double()), theirs(x.double()), rtol=1e-12, atol=1e-12)
traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Identity(), ours))
assert torch.equal(traced(x.double()), ours(x.double()))
"""


def test_the_steps_name_every_file_that_is_touched() -> None:
    """There are four steps, with a file each."""
    text = (ROOT / "csrc/README.md").read_text().split("## Add a variant in four steps")[1].split("\n## ")[0]
    steps = re.findall(r"^\d\. (.*?)(?=^\d\. |^$)", text, re.MULTILINE | re.DOTALL)
    named = [re.search(r"`(\S+)`", step)[1].replace("<name>", NAME) for step in steps]
    touched = {f"{folder}/{file}" for folder, file in FILES.items()} | {edit.file for edit in EDITS}
    assert sorted(named) == sorted(touched) and len(named) == 4


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the variant, built for the CPU without optimization and with warnings as errors."""
    folder = tmp_path_factory.mktemp("variant")
    for name in ("csrc", "eca_cuda", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for target, file in FILES.items():
        shutil.copy(Path(__file__).parent / NAME / file, folder / target)
    for edit in EDITS:
        edit.apply(folder)
    run(folder, "setup.py", "build_ext", "--inplace", ECA_CUDA_BUILD="cpu", ECA_CUDA_DEBUG="1", MAX_JOBS="2")
    return folder


@pytest.fixture(scope="module")
def library(copy: Path) -> Path:
    """The library of the emulated device, built from the copy."""
    tools = emulated.build_tools()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulated, "ROOT", copy)
        patch.setitem(tools.KERNEL_FLAGS, "plain", ["-O0", "-fno-strict-aliasing"])
        return emulated.build_library("plain", "variant")


def run(folder: Path, *arguments: str, **environment: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_a_fourth_gate_is_right_everywhere(copy: Path, library: Path) -> None:
    """In one test, as the workers of pytest share no fixtures and the sources are to be compiled once."""
    chosen = " or ".join(f"({Path(file).stem} and ({names or 'test'}))" for file, names in TESTS.items())
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"{NAME} and ({chosen})")
    output = run(copy, "-m", "pytest", *options, *(f"tests/{f}" for f in TESTS), ECA_CUDA_EMULATED_LIBRARY=str(library))
    assert re.search(r"^\d+ passed, \d+ deselected", output, re.MULTILINE), output  # and nothing was skipped
    pytest.importorskip("timm")
    run(copy, "-c", BESIDE_TIMM)
    needs_too_little(copy)


def needs_too_little(copy: Path) -> None:
    """A gate that takes more than its ``needs`` is stopped by this build, before it overwrites memory."""
    gate = copy / "csrc/gates" / f"{NAME}.h"
    text = gate.read_text()
    for enough, too_little in {"GateNeeds{1, 0,": "GateNeeds{0, 0,", "{s.hidden, s.hidden}": "{s.hidden, 0}"}.items():
        assert text.count(enough) == 1
        gate.write_text(text.replace(enough, too_little))
        run(copy, "setup.py", "build_ext", "--inplace", ECA_CUDA_BUILD="cpu", ECA_CUDA_DEBUG="1", MAX_JOBS="2")
        code = "import eca_cuda, torch; eca_cuda.SqueezeExcitation(32)(torch.randn(1, 32, 2, 2)).sum().backward()"
        assert subprocess.run([sys.executable, "-c", code], cwd=copy).returncode == -signal.SIGILL
