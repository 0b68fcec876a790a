# SPDX-License-Identifier: MIT
"""``python -m eca_cuda.info`` describes the build and what runs on which device, as text and as JSON."""

import json
import subprocess
import sys

import torch

import eca_cuda
from eca_cuda import info


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "eca_cuda.info", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_json_and_python_agree() -> None:
    facts = json.loads(run("--json"))
    assert facts["eca_cuda"] == eca_cuda.__version__
    assert facts["running"]["torch"] == torch.__version__
    assert set(facts) == set(info.collect())
    assert facts["built_with"]["eca_cuda"] == eca_cuda.__version__
    assert facts["built_with"]["torch"] and facts["built_with"]["compiler"]


def test_text_names_the_kernels_and_the_reason_for_the_build() -> None:
    text = run()
    assert "kernels on " in text
    assert "built: CPU" in text


def test_an_unknown_option_is_refused() -> None:
    done = subprocess.run([sys.executable, "-m", "eca_cuda.info", "--jason"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--jason" in done.stderr
