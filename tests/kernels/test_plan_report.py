# SPDX-License-Identifier: MIT
"""``python -m eca_cuda.info --plan``: the launch plan as text and as JSON."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from test_plan import DEVICES, DTYPES, plan

from eca_cuda import info, plan_report


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert info.main(["--plan", *arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        info.main([*arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_the_report_of_one_pass_names_the_assumed_device(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(":", 1) for line in report(capsys, "256", "256", "56", "56", "float16").splitlines())
    assert {name: line.strip() for name, line in lines.items()} == {
        "call": "eca forward of [256, 256, 56, 56] float16 contiguous",
        "device": "h100, by its public figures, because no GPU is visible here",
        "path": "one_pass: a sample fits the shared memory of its blocks",
        "sample": "16 blocks, 1 to a strip, each with 16 channels x 3136 positions",
        "block": "512 threads; 2 on each multiprocessor",
        "kept": "1 maps, 100.4 KB each, by one bulk copy each",
        "shared memory": "100.8 KB a block",
    }


def test_the_report_of_two_phases(capsys: pytest.CaptureFixture[str]) -> None:
    lines = report(capsys, "256", "256", "56", "56", "float16", "--device", "a100").splitlines()
    assert [line.split(":", 1)[1].strip() for line in lines[2:]] == [
        "two_phase: a sample does not fit the shared memory of its blocks",
        "86 tiles of 3 channels x 3136 positions",
        "256 threads; 432 blocks in all",
        "44032 visits of tiles; before the first second one 518 first ones",
        "2.1 KB a block",
    ]


def test_the_options_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["32", "2048", "7", "7", "bfloat16", "--layout", "channels_last", "--variant", "bidirectional_eca"]
    arguments += ["--direction", "backward", "--relu", "--residual", "--device", "b200"]
    text = report(capsys, *arguments)
    assert "bidirectional_eca backward + residual + relu of [32, 2048, 7, 7] bfloat16 channels_last" in text
    assert "b200, by its public figures\n" in text and "2 maps" in text
    facts = json.loads(report(capsys, *arguments, "--json"))
    options = {"relu": True, "residual": True, "kernel_size": 3, "hidden": 128}
    assert facts["plan"] == plan(
        32, 2048, 49, "bfloat16", "channels_last", "backward", "b200", "bidirectional_eca", **options
    )
    promised = {"path", "blocks_per_sample", "position_parts", "threads", "shared_bytes", "reason"}
    assert promised | {"blocks_per_multiprocessor"} <= facts["plan"].keys()


def test_every_call_has_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    for sizes in itertools.product(("0", "1", "3"), repeat=4):
        for dtype, device in itertools.product(DTYPES, ("h100", "a10")):
            text = report(capsys, *sizes, dtype, "--device", device)
            assert ("path:          nothing" in text) == (sizes[0] == "0" or sizes[1] == "0")
    assert "nothing: no channels" in report(capsys, "3", "0", "1", "1", "float32")


def test_the_gpu_that_is_here_is_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = DEVICES["h100"] | {"name": "", "multiprocessors": 114}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 PCIe")
    monkeypatch.setattr(plan_report._C, "device", lambda: here)
    assert plan_report.find_device(None) == (here | {"name": "NVIDIA H100 PCIe"}, "the GPU here")
    assert "NVIDIA H100 PCIe, the GPU here" in report(capsys, "400", "64", "56", "56", "float32")
    assert plan_report.find_device("a10")[0] == DEVICES["a10"]


def test_the_reports_errors(capsys: pytest.CaptureFixture[str]) -> None:
    call = ("--plan", "1", "2", "3", "4", "float32")
    for arguments, message in (
        (("--plan", "1", "2", "x", "4", "float32"), "H: expected an integer from 0 on, got 'x'"),
        (("--plan", "1", "-2", "3", "4", "float32"), "C: expected an integer from 0 on, got '-2'"),
        (("--plan", str(2**70), "2", "3", "4", "float32"), f"n: expected an integer from 0 to {2**48}, got {2**70}"),
        (
            ("--plan", "1", "2", "3", "4", "fp32"),
            "dtype: expected one of float32, float64, float16, bfloat16, got 'fp32'",
        ),
        (("--plan", "1", "2", "3"), "argument --plan: expected 5 arguments"),
        ((*call, "--device", "h1000"), "device: expected one of a10, a100, b200, h100, "),
        ((*call, "--layout", "NHWC"), "layout: expected one of contiguous, channels_last, got 'NHWC'"),
        ((*call, "--variant", "gct"), "variant: expected one of eca, multi_kernel_eca, bidirectional_eca, got 'gct'"),
        ((*call, "--direction", "up"), "direction: expected one of forward, backward, got 'up'"),
        (("--device", "h100"), "--device: expected together with --plan, got no --plan"),
        (("--relu", "--json"), "--relu: expected together with --plan, got no --plan"),
    ):
        assert message in refusal(capsys, *arguments)


def test_the_command_line() -> None:
    command = [sys.executable, "-m", "eca_cuda.info", "--plan", "32", "1024", "14", "14", "float32", "--device", "b200"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "b200, by its public figures" in done.stdout
