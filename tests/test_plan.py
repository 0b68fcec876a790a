# SPDX-License-Identifier: MIT
"""The launch plan: what it promises for every problem on every device, what it is for some by hand, and its report."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eca_cuda import info, plan_report
from eca_cuda._ext import _C

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
needs_sources = pytest.mark.skipif(not CSRC.exists() or not COMPILER, reason="needs the source tree and g++")

LAYERS = {"layer1": (256, 56), "layer2": (512, 28), "layer3": (1024, 14), "layer4": (2048, 7)}
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
LAYOUTS = ("contiguous", "channels_last")
DEVICES = {device["name"]: device for device in _C.devices()}


def plan(
    n: int,
    c: int,
    s: int,
    dtype: str = "float16",
    layout: str = "contiguous",
    direction: str = "forward",
    device: Any = "h100",
    variant: str = "eca",
    **options: Any,
) -> dict[str, Any]:
    return _C.plan(n, c, s, dtype, layout, variant, direction, device, **options)


# --- every problem ---------------------------------------------------------------------------------------------------


@needs_sources
def test_plans_of_random_problems_hold_on_all_devices(tmp_path: Path) -> None:
    """plan_fuzz.cpp has the promises. That it compiles shows that the plan needs a C++ compiler and nothing else."""
    sources = [CSRC / "plan/plan.cpp", CSRC / "plan/device.cpp", ROOT / "tests/plan_fuzz.cpp"]
    command = [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", *map(str, sources)]
    listed = subprocess.run([*command, "-MM"], capture_output=True, text=True, check=True).stdout
    headers = {Path(name).resolve().relative_to(CSRC) for name in re.findall(r"\S+\.h\b", listed)}
    assert headers == {Path(name) for name in ("options.h", "problem.h", "tiling.h", "plan/plan.h", "plan/device.h")}

    # Overflow and the like end the program.
    traps = ["-fsanitize=undefined,float-cast-overflow", "-fsanitize-undefined-trap-on-error"]
    fuzz = tmp_path / "plan_fuzz"
    subprocess.run([*command, "-O1", *traps, "-o", str(fuzz)], check=True)
    problems = 30_000
    done = subprocess.run([fuzz, str(problems), "1"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr} (status {done.returncode})"
    met = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert met.pop("plans") >= problems * (len(DEVICES) + 5)
    assert len(met) == 8 and min(met.values()) > 1000, f"hardly ever met: {met}"


def test_known_devices_have_the_figures_of_their_generation() -> None:
    # Compute capability: shared memory per multiprocessor in KB, threads per multiprocessor (CUDA programming guide).
    limits = {75: (64, 1024), 80: (164, 2048), 86: (100, 1536), 89: (100, 1536), 90: (228, 2048), 100: (228, 2048)}
    limits[120] = (100, 1536)
    multiprocessors = {"a10": 72, "a100": 108, "b200": 148, "h100": 132, "h200": 132, "l4": 58, "t4": 40}
    multiprocessors |= {"rtx4090": 128, "rtx5090": 170, "h100-mig-1g": 16}
    assert {name: device["multiprocessors"] for name, device in DEVICES.items()} == multiprocessors
    for device in DEVICES.values():
        shared, threads = limits[device["capability"]]
        assert device["shared_per_multiprocessor"] == shared * 1024, device["name"]
        assert device["threads_per_multiprocessor"] == threads, device["name"]
        assert (device["max_threads"], device["shared_per_block"]) == (1024, 48 * 1024)
    assert {name for name, device in DEVICES.items() if device["measured"]} == {"h100", "h200"}


# --- some by hand ----------------------------------------------------------------------------------------------------


def test_resnet_layer1_half_planes() -> None:
    # Planes of 56 * 56 * 2 = 6272 bytes = 392 * 16. Half of the L2, 25 MiB, for 4 * 132 tiles of 2 maps: 24824 bytes,
    # so 3 planes a tile, 86 tiles a sample. 64 lanes: 4 planes at a time, 7 loads each; 32 lanes: 13 loads; 128: 2 * 4,
    # and each time the sum of the lanes.
    got = plan(256, 256, 56 * 56, kernel_size=5)
    assert (got["layout"], got["alignment"], got["vector"]) == ("planes", 16, 8)
    assert got["tiling"] == {"channels": 3, "positions": 3136, "blocks": 1, "count": 86}
    assert (got["threads"], got["lanes"], got["blocks"]) == (256, 64, 4 * 132)
    assert (got["tickets"], got["lag"]) == (2 * 256 * 86, 86 + 528)
    # A ticket, 32 floats for the warps; then 3 planes * 2 warps of sums, or twice 256 channels and 2 + 2 beyond them.
    assert got["shared"] == {"ticket": 0, "warps": 16, "sums": 144, "gate": 144, "total": 144 + 2 * 260 * 4}
    assert got["floor_bytes"] == 2 * 256 * 256 * 56 * 56 * 2
    assert got["floor_us"] == pytest.approx(822.1 / 3.0, abs=0.1)  # MB / (TB/s)


def test_resnet_layer4_single_rows_backward() -> None:
    # Rows of 8 KB. 25 MiB for 3 * 132 tiles of 3 maps: 22066 bytes, 5516 floats: all 49 positions of 112 channels or 28
    # vectors; 24 of them are whole lines, 384 bytes, and 22 strips of those make 2048 channels.
    got = plan(32, 2048, 49, "float32", "channels_last", "backward", kernel_size=7)
    assert (got["layout"], got["alignment"], got["vector"], got["lanes"]) == ("rows", 16, 4, 1)
    assert got["tiling"] == {"channels": 96, "positions": 49, "blocks": 1, "count": 22}
    assert (got["threads"], got["blocks"], got["tickets"], got["lag"]) == (256, 396, 2 * 32 * 22, 22 + 396)
    assert got["gate_numbers"] == 2 * (2048 + 6)
    assert got["shared"]["total"] == 144 + 2 * 2054 * 4  # more than the sums: 256 threads * 4 floats


def test_resnet_layer4_half_planes_alone() -> None:
    # 98 bytes: single elements. 24824 bytes are 253 planes, so 9 tiles of 228. 4 lanes: 4 times 64 planes, 13 loads.
    got = plan(1, 2048, 49)
    assert (got["alignment"], got["vector"], got["lanes"], got["threads"]) == (2, 1, 4, 256)
    assert got["tiling"] == {"channels": 228, "positions": 49, "blocks": 1, "count": 9}
    assert (got["tickets"], got["blocks"], got["lag"]) == (18, 18, 9)  # fewer than there is room for


def test_large_rows_on_a_small_cache() -> None:
    # 3 MiB for 4 * 72 tiles of 2 maps: 5461 bytes, 2730 halfs: 21 positions of 256 bytes. 3136 / 21 = 149.3: 150 parts.
    got = plan(32, 256, 56 * 56, layout="channels_last", device="a10")
    assert got["tiling"] == {"channels": 128, "positions": 21, "blocks": 150, "count": 300}
    assert got["blocks"] == 288


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resnet_plans_are_sensible(name: str, dtype: str, layout: str) -> None:
    facts, item = DEVICES[name], DTYPES[dtype]
    for (c, side), n, direction in itertools.product(LAYERS.values(), (1, 32, 256), ("forward", "backward")):
        got = plan(n, c, side * side, dtype, layout, direction, name)
        tiling, grid = got["tiling"], (4 if direction == "forward" else 3) * facts["multiprocessors"]
        tile = min(tiling["channels"], c) * min(tiling["positions"], side * side) * item
        assert got["threads"] == 256 and got["blocks"] == min(grid, got["tickets"])
        # Something to do for each thread; what lies between two visits stays in the L2; little waste for partial sums.
        assert tile // (got["vector"] * item) >= 128
        maps = 2 if direction == "forward" else 3
        assert tile <= max(4096, min(facts["l2"] / 2 / grid / maps, 32768))
        assert n * tiling["blocks"] * c * 4 <= 0.08 * got["floor_bytes"]
        if layout == "channels_last":
            columns = min(tiling["channels"], c) // got["vector"]
            assert columns * (256 // columns) >= 224 and columns * got["vector"] * item >= 256
        assert got["predicted_us"] < 15 + 2 * got["floor_us"]


def test_extremes_are_sensible() -> None:
    tiny = plan(10**6, 16, 4, "float32")
    assert (tiny["threads"], tiny["blocks"]) == (64, 16 * 132)  # all waiting: many small blocks
    assert tiny["predicted_us"] > 10 * tiny["floor_us"]  # and the prediction says that they wait
    for layout, c in itertools.product(LAYOUTS, (1, 64)):
        long = plan(1, c, 10**7, layout=layout)
        assert 200 < long["tiling"]["blocks"] <= 256  # one thread adds them up
        assert long["blocks"] >= 3 * 132
    wide = plan(1, 100_000, 1)
    assert wide["layout"] == "rows" and wide["shared"]["gate"] == -1 and wide["shared"]["total"] < 16384
    assert wide["tiling"]["count"] == 49  # strips of 2048 channels: a load for each thread
    # 4 MiB for two visits of 3 * 40 tiles of 5 maps would be 3.5 KB; but 16 bytes a thread: 784, in whole lines.
    tight = plan(8, 256, 56 * 56, "float32", direction="backward", device="t4", relu=True, residual=True)
    assert tight["tiling"] == {"channels": 1, "positions": 800, "blocks": 4, "count": 1024}
    # Samples that don't fit the L2 are read twice; those that do, once.
    assert plan(4, 64, 10**7)["memory_bytes"] > 1.4 * plan(4, 64, 10**7)["floor_bytes"]
    assert plan(256, 256, 3136)["memory_bytes"] < 1.01 * plan(256, 256, 3136)["floor_bytes"]


def test_what_is_not_aligned_is_read_element_by_element() -> None:
    widths = {16: 8, 8: 4, 4: 1, 2: 1}
    for alignment, width in widths.items():
        assert plan(4, 16, 56 * 56, alignment=alignment)["vector"] == width
    assert plan(4, 16, 56 * 56, "float64")["vector"] == 2
    assert [plan(4, 17, s)["vector"] for s in (8, 4, 2, 9)] == [8, 4, 1, 1]
    assert [plan(4, c, 9, layout="channels_last")["vector"] for c in (8, 4, 2, 9)] == [8, 4, 1, 1]


def test_layouts_are_those_of_feature_maps() -> None:
    for layout, c, s, walked in (
        ("contiguous", 8, 9, "planes"),
        ("channels_last", 8, 9, "rows"),
        ("contiguous", 8, 1, "rows"),
        ("channels_last", 1, 9, "planes"),
        ("channels_last", 1, 1, "rows"),
    ):
        assert plan(2, c, s, layout=layout)["layout"] == walked, (layout, c, s)


def test_the_gate_gets_what_its_executor_needs() -> None:
    def numbers(variant: str, **options: Any) -> int:
        return plan(2, 96, 49, variant=variant, **options)["gate_numbers"]

    assert numbers("eca", kernel_size=5) == 2 * (96 + 4)
    assert numbers("multi_kernel_eca", kernel_size=7) == 2 * (96 + 6) + 3
    assert numbers("bidirectional_eca", kernel_size=3, hidden=6) == 2 * (96 + 2) + 2 * 96 + 2 * 3 + 2 * 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_floor_bytes_count_each_map_once(dtype: str) -> None:
    traffic = pytest.importorskip("benchmarks.traffic")
    n, c, s = 32, 512, 784
    size = n * c * s * DTYPES[dtype]
    maps = {  # direction, relu, residual
        ("forward", False, False): 2,  # x; y
        ("forward", True, False): 2,
        ("forward", False, True): 3,  # x, residual; y
        ("forward", True, True): 3,
        ("backward", False, False): 3,  # grad_y, x; grad_x
        ("backward", False, True): 3,  # the residual's gradient is grad_y itself
        ("backward", True, False): 4,  # grad_y, x, y; grad_x
        ("backward", True, True): 5,  # grad_y, x, y; grad_x, grad_residual
    }
    for (direction, relu, residual), count in maps.items():
        got = plan(n, c, s, dtype, direction=direction, relu=relu, residual=residual)
        assert got["floor_bytes"] == count * size, (direction, relu, residual)
        read_again = 1 if direction == "forward" else 1 + relu
        assert got["l2_bytes"] == (count + read_again) * size
    for work, direction, residual in (("forward",) * 2 + (False,), ("backward",) * 2 + (False,)):
        assert plan(n, c, s, dtype, direction=direction, residual=residual)["floor_bytes"] == traffic.floor_bytes(
            work, n * c * s, DTYPES[dtype]
        )
    residual_forward = traffic.floor_bytes("residual_forward", n * c * s, DTYPES[dtype])
    assert plan(n, c, s, dtype, residual=True, relu=True)["floor_bytes"] == residual_forward


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n: expected a size from 0 to 2^40, got -1"),
        ({"c": 2**20, "s": 2**30}, "n * c * s: expected at most 2^40 elements, got more"),
        ({"dtype": "half"}, "dtype: expected one of float32, float64, float16, bfloat16, got 'half'"),
        ({"layout": "NHWC"}, "layout: expected one of contiguous, channels_last, got 'NHWC'"),
        ({"variant": "gct"}, "variant: expected one of eca, multi_kernel_eca, bidirectional_eca, got 'gct'"),
        ({"direction": "up"}, "direction: expected one of forward, backward, got 'up'"),
        ({"device": "h1000"}, "device: expected one of a10, a100, b200, h100, h100-mig-1g, "),
        ({"device": 7}, "device: expected a name or a dict, got 7"),
        ({"device": {"capability": 90}}, "device: expected a dict with 'multiprocessors', got one without"),
        ({"device": {**DEVICES["h100"], "max_threads": 16}}, "device: expected max_threads >= 32, got 16"),
        ({"device": {**DEVICES["h100"], "l2": "50 MB"}}, "device: expected l2 >= 0, got '50 MB'"),
        ({"kernel_size": 4}, "kernel_size: expected a positive odd number, got 4"),
        ({"alignment": 3}, "alignment: expected a power of two from the size of an element to 16 bytes, got 3"),
        ({"alignment": 32}, "alignment: expected a power of two from the size of an element to 16 bytes, got 32"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        plan(**{"n": 2, "c": 8, "s": 8, **arguments})


# --- the report ------------------------------------------------------------------------------------------------------


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
def test_the_report_names_what_is_predicted_and_the_assumed_device(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(":", 1) for line in report(capsys, "256", "256", "56", "56", "float16").splitlines())
    assert {name: line.strip() for name, line in lines.items()} == {
        "call": "eca forward of [256, 256, 56, 56] float16 contiguous",
        "device": "h100, by its public figures, because no GPU is visible here",
        "path": "two-phase: for any shape, dtype and stride",
        "tiles": "86 a sample, of 3 channels x 3136 positions, 18.8 KB; partial sums of a channel: 1",
        "grid": "528 blocks of 256 threads, 64 of them to a plane",
        "order": "44032 visits of tiles; before the first second one 614 first ones",
        "vector": "8 elements, 16 bytes, along planes",
        "shared memory": "2.2 KB a block; 520 gate numbers in it",
        "bytes": "floor 822.1 MB; from and to memory 822.9 MB*; between L2 and multiprocessors 1.2 GB*",
        "time": "floor 274.0 us; the call 327.8 us*, 83.6%* of the copy rate",
        "*": "a prediction that no measurement backs; it counts bytes and waiting, not instructions",
        "resident": "yes, and so instead of the path above: 7 clusters of 16 blocks of 512 threads, 2 slabs of 100352 "
        "bytes, 203648 bytes of shared memory",
        "resident time": "the call 289.7 us*, 94.6%* of the copy rate",
    }


def test_the_options_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["32", "2048", "7", "7", "bfloat16", "--layout", "channels_last", "--variant", "bidirectional_eca"]
    arguments += ["--direction", "backward", "--relu", "--residual", "--device", "t4"]
    text = report(capsys, *arguments)
    assert "bidirectional_eca backward + residual + relu of [32, 2048, 7, 7] bfloat16 channels_last" in text
    assert "t4, by its public figures\n" in text and "along rows" in text and "gate numbers in global memory" in text
    facts = json.loads(report(capsys, *arguments, "--json"))
    expected = plan(
        *(32, 2048, 49, "bfloat16", "channels_last", "backward", "t4", "bidirectional_eca"),
        **{"relu": True, "residual": True, "kernel_size": 3, "hidden": 128},
    )
    assert {key: facts["plan"][key] for key in expected} == expected
    assert facts["plan"]["share_of_copy_rate"] == pytest.approx(expected["floor_us"] / expected["predicted_us"])
    # The rate that the floor's time comes from is a data sheet's, too.
    assert facts["not_measured"] == ["memory_bytes", "l2_bytes", "predicted_us", "share_of_copy_rate", "floor_us"]
    assert re.search(r"floor \d+\.\d us\*", text)


def test_every_call_has_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    for sizes in itertools.product(("0", "1", "3"), repeat=4):
        for dtype, device in itertools.product(DTYPES, ("h100", "a10")):
            text = report(capsys, *sizes, dtype, "--device", device)
            assert ("path:          nothing" in text) == (sizes[0] == "0" or sizes[1] == "0")
    assert "nothing: no channels" in report(capsys, "3", "0", "1", "1", "float32")


def gpu(monkeypatch: pytest.MonkeyPatch, **figures: Any) -> None:
    known = _C.known_device(figures["name"], figures["multiprocessors"]) or {"copy_rate": 0.0, "measured": False}
    here = DEVICES["h100"] | figures | {key: known[key] for key in ("copy_rate", "measured")}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: figures["name"])
    monkeypatch.setattr(plan_report._C, "device", lambda: here)


def test_the_gpu_that_is_here_is_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, name="NVIDIA H100 80GB HBM3", multiprocessors=132)
    device, origin = plan_report.find_device(None)
    assert origin == "the GPU here"
    assert device == {**DEVICES["h100"], "name": "NVIDIA H100 80GB HBM3"}
    facts = json.loads(report(capsys, "4", "64", "28", "28", "float32", "--json"))
    assert facts["plan"]["floor_us"] and "floor_us" not in facts["not_measured"]

    gpu(monkeypatch, name="NVIDIA H100 PCIe", multiprocessors=114)  # slower memory, of which nothing is known
    text = report(capsys, "400", "64", "56", "56", "float32")
    assert f"{4 * 114} blocks" in text and "not predicted: the copy rate of this device is not known" in text
    assert DEVICES["a10"] == plan_report.find_device("a10")[0]


def test_the_reports_errors(capsys: pytest.CaptureFixture[str]) -> None:
    call = ("--plan", "1", "2", "3", "4", "float32")
    for arguments, message in (
        (("--plan", "1", "2", "x", "4", "float32"), "H: expected an integer from 0 on, got 'x'"),
        (("--plan", "1", "-2", "3", "4", "float32"), "C: expected an integer from 0 on, got '-2'"),
        (("--plan", str(2**70), "2", "3", "4", "float32"), f"at most 2^40 elements, got {2**70} x 2 x 3 x 4"),
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
