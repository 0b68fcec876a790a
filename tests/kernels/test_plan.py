# SPDX-License-Identifier: MIT
"""The launch plan: its promises for every call on every device, rules that choose the plans that were measured to be
best, and some plans computed by hand."""

import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eca_cuda._ext import _C

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
MEASURED = ROOT / "benchmarks/results/h100/one-pass-prototype.json"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="needs g++")

RESNET = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
MOBILENET = [(32, 112), (96, 56), (144, 56), (144, 28), (192, 28), (192, 14), (384, 14), (576, 14), (576, 7), (960, 7)]
HALVES = ("float16", "bfloat16")
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
LAYOUTS = ("contiguous", "channels_last")
DIRECTIONS = ("forward", "backward")
VARIANTS = ("eca", "multi_kernel_eca", "bidirectional_eca")
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
    made: dict[str, Any] = _C.plan(n, c, s, dtype, layout, variant, direction, device, **options)
    return made


# --- every call ------------------------------------------------------------------------------------------------------


@needs_compiler
def test_plans_of_random_calls_hold_on_all_devices(tmp_path: Path) -> None:
    """plan_fuzz.cpp checks the promises. That it compiles shows that plans need nothing but a C++ compiler."""
    plans = [CSRC / "plan" / name for name in ("plan.cpp", "one_pass.cpp", "two_phase.cpp")]
    command = [
        COMPILER,
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        *map(str, plans),
        str(ROOT / "tests/kernels/plan_fuzz.cpp"),
    ]
    listed = subprocess.run([*command, "-MM"], capture_output=True, text=True, check=True).stdout
    headers = {Path(name).resolve().relative_to(CSRC).parts for name in re.findall(r"\S+\.h\b", listed)}
    assert {parts[0] for parts in headers if len(parts) > 1} == {"plan", "gates"}
    assert {parts[0] for parts in headers if len(parts) == 1} == {"options.h", "problem.h", "tiling.h"}

    # Undefined behaviour, such as overflow, ends the program.
    traps = ["-fsanitize=undefined,float-cast-overflow", "-fsanitize-undefined-trap-on-error"]
    fuzz, fast = tmp_path / "plan_fuzz", tmp_path / "plan_time"
    subprocess.run([*command, "-O1", *traps, "-o", str(fuzz)], check=True)
    done = subprocess.run([fuzz, "30000", "1"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr} (status {done.returncode})"
    met = {name: int(count) for name, count in re.findall(r"(\w+) (\d+)", done.stdout)}
    assert met.pop("plans") == 9 * 30000 and met.pop("ns") and met.pop("sum")
    assert len(met) == 10 and min(met.values()) > 1000, f"hardly ever met: {met}"

    subprocess.run([*command, "-O3", "-o", str(fast)], check=True)
    timed = subprocess.run([fast, "1", "1"], capture_output=True, text=True, check=True).stdout
    assert int(re.findall(r"ns (\d+)", timed)[0]) < 1000  # per plan


def test_known_devices_have_the_figures_of_their_generation() -> None:
    # Compute capability: shared memory per multiprocessor in KB, threads per multiprocessor (CUDA programming guide).
    limits = {75: (64, 1024), 80: (164, 2048), 86: (100, 1536), 89: (100, 1536), 90: (228, 2048), 100: (228, 2048)}
    limits[120] = (100, 1536)
    multiprocessors = {"a10": 72, "a100": 108, "b200": 148, "h100": 132, "h200": 132, "l4": 58, "t4": 40}
    multiprocessors |= {"rtx4090": 128, "rtx5090": 170, "h100-mig-1g": 16}
    blocks = {90: 16, 100: 16, 120: 8}
    assert {name: device["multiprocessors"] for name, device in DEVICES.items()} == multiprocessors
    for device in DEVICES.values():
        shared, threads = limits[device["capability"]]
        assert device["shared_per_multiprocessor"] == shared * 1024, device["name"]
        assert device["threads_per_multiprocessor"] == threads, device["name"]
        assert device["most_blocks"] == blocks.get(device["capability"], 1), device["name"]
        assert (device["max_threads"], device["shared_per_block"]) == (1024, 48 * 1024)


# --- one pass: the rules choose what an H100 was fastest with ---------------------------------------------------------

NEAR = 0.97  # of the fastest plan
# 144 channels, 288 bytes a row: the best cut forward, whole rows in 16 parts, is not the best one backward.
FAR = {(256, 144, 56, "float16", "channels_last", "backward"): 0.88}


def measured() -> list[dict[str, Any]]:
    data = json.loads(MEASURED.read_text())
    return [dict(zip(data["columns"], row, strict=True)) for row in data["rows"]]


def share_of(made: dict[str, Any], row: dict[str, Any]) -> float | None:
    """The measured share of a plan: of exactly this one, or of its cut with the best number of threads."""
    cut = (made["blocks_per_sample"], made["position_parts"])
    for blocks, parts, threads, keeps_x, _, share in row["best"]:
        if (blocks, parts, threads, keeps_x) == (*cut, made["threads"], made["keeps_x"]):
            return float(share)
    return next((float(share) for *size, share in row["sizes"] if tuple(size) == cut), None)


@pytest.mark.parametrize("row", measured(), ids=lambda row: "-".join(map(str, list(row.values())[:6])))
def test_the_rules_choose_what_was_measured_best(row: dict[str, Any]) -> None:
    call = (row["n"], row["c"], row["side"] ** 2, row["dtype"], row["layout"], row["direction"])
    made = plan(*call, kernel_size=5)
    share, least = share_of(made, row), FAR.get((row["n"], row["c"], row["side"], *call[3:]), NEAR)
    assert made["path"] == "one_pass" and share is not None, made
    assert share >= least * row["best_share"], (
        f"{share} of a copy where {row['best_share']} was possible: {made['text']}"
    )


def markdown() -> str:
    """The table of docs/kernels.md: batch 256, the fastest cut and its share of a copy's rate, and the rule's share."""
    lines = ["| maps, batch 256 | direction | layout | fastest: blocks, parts, threads | of a copy | the rule's |"]
    lines.append("|---|---|---|---|--:|--:|")
    for row in (row for row in measured() if row["n"] == 256):
        call = (row["n"], row["c"], row["side"] ** 2, row["dtype"], row["layout"], row["direction"])
        cut = ", ".join(map(str, row["best"][0][:3])) if row["best"] else "-"
        shares = f"{row['best_share']:.3f} | {share_of(plan(*call, kernel_size=5), row):.3f}"
        what = f"{row['c']}x{row['side']}x{row['side']} {row['dtype']} | {row['direction']} | {row['layout']}"
        lines.append(f"| {what} | {cut} | {shares} |")
    return "\n".join(lines)


def test_the_page_shows_the_measured_table() -> None:
    page = ROOT / "docs/kernels.md"
    shown = page.read_text().split("<!-- prototype:begin -->\n")[1].split("<!-- prototype:end -->")[0]
    assert shown == markdown() + "\n", "docs/kernels.md should have:\n" + markdown()


def test_the_measured_table_is_of_all_layers() -> None:
    kinds = {
        (row["c"], row["side"], row["dtype"], row["layout"], row["direction"]) for row in measured() if row["n"] == 256
    }
    for dtype in ("float16", "float32"):
        assert kinds >= {(*layer, dtype, *how) for layer in RESNET for how in itertools.product(LAYOUTS, DIRECTIONS)}


@pytest.mark.parametrize("name", ["b200", "h100", "h200"])
def test_every_layer_of_the_goals_takes_one_pass(name: str) -> None:
    for (c, side), dtype, layout, direction, n, variant, relu in itertools.product(
        RESNET + MOBILENET, ("float32", *HALVES), LAYOUTS, DIRECTIONS, (1, 32, 256), VARIANTS, (False, True)
    ):
        options = {"kernel_size": 7 if variant == "multi_kernel_eca" else 5, "hidden": c // 16}
        made = plan(n, c, side * side, dtype, layout, direction, name, variant, relu=relu, residual=relu, **options)
        assert made["path"] == "one_pass", (c, side, dtype, layout, direction, variant, made["reason"])


def test_few_samples_have_as_many_blocks_as_there_are() -> None:
    for (c, side), layout, direction in itertools.product(RESNET, LAYOUTS, DIRECTIONS):
        for n in (1, 32):
            assert plan(n, c, side * side, "float16", layout, direction)["blocks_per_sample"] == 16
    assert plan(1, 960, 49)["blocks_per_sample"] == 8  # 94 KB: no slabs below 10 KB
    assert plan(1, 64, 49)["blocks_per_sample"] == 1


def test_narrow_strips_are_shared_by_positions() -> None:
    def parts(c: int, side: int, dtype: str = "float16", direction: str = "forward") -> tuple[int, int]:
        made = plan(256, c, side * side, dtype, "channels_last", direction)
        return made["blocks_per_sample"], made["position_parts"]

    assert parts(256, 56) == (16, 4)  # 512 bytes a row, 16 blocks: 32 bytes each, and so 128 for four together
    assert parts(512, 28) == (16, 2) and parts(1024, 14) == (16, 1)
    assert parts(256, 56, "float32") == (16, 2)
    assert parts(32, 112) == (16, 16)  # 64 bytes a row
    assert parts(144, 56) == (16, 16)  # halves of 144 bytes would end within a sector of 32


def test_maps_are_kept_where_two_blocks_have_room() -> None:
    def kept(c: int, side: int, direction: str, dtype: str = "float16", **options: Any) -> tuple[int, bool, bool]:
        made = plan(256, c, side * side, dtype, "contiguous", direction, **options)
        return made["slabs"], made["keeps_x"], made["keeps_extra"]

    assert kept(256, 56, "forward") == (1, False, False)
    assert kept(256, 56, "forward", residual=True) == (1, False, False)  # two of 98 KB: the residual is streamed
    assert kept(512, 28, "forward", residual=True) == (2, False, True)  # two of 50 KB
    assert kept(512, 28, "backward") == (2, True, False)
    assert kept(512, 28, "backward", relu=True) == (2, True, False)  # signs are no map
    assert kept(256, 56, "backward") == (2, True, False)  # one block alone, which is still faster
    assert kept(256, 56, "backward", "float32") == (1, False, False)  # 196 KB: x is streamed


def test_occupancy_is_that_of_shared_memory_and_registers() -> None:
    made = plan(256, 1024, 196)
    by_shared = DEVICES["h100"]["shared_per_multiprocessor"] // (made["shared_bytes"] + 1024)
    assert made["blocks_per_multiprocessor"] == min(by_shared, 1024 // made["threads"]) == 4


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
def test_what_does_not_take_one_pass_says_why(dtype: str) -> None:
    def reason(*args: Any, **options: Any) -> str:
        made = plan(*args, **{"dtype": dtype, **options})
        assert made["path"] == "two_phase" and made["blocks_per_sample"] is None
        return str(made["reason"])

    assert "compute capability 8.0" in reason(8, 64, 49, device="t4")
    assert "too few samples to keep the multiprocessors busy" in reason(8, 64, 49, device="a100")
    assert "does not fit the shared memory of its blocks" in reason(256, 256, 3136, device="a100")
    assert "does not fit the shared memory of its blocks" in reason(8, 2048, 3136)
    assert "do not begin at multiples of 16 bytes" in reason(8, 3, 49)
    assert "a map has gaps" in reason(8, 64, 64, gaps=True)
    assert "rows are no multiple of 16 bytes" in reason(8, 9, 16, layout="channels_last")
    assert "nothing to keep" in reason(8, 64, 0)
    assert "float64" in reason(8, 64, 49, dtype="float64")


def test_channels_are_never_fewer_than_a_window_reaches() -> None:
    for c, k in itertools.product((2, 3, 8, 24, 40), (1, 3, 9, 31)):
        made = plan(1, c, 4096, "float32", kernel_size=k)
        columns = made["blocks_per_sample"] or 1
        assert columns == 1 or c - (columns - 1) * made["channels"] >= max(k // 2, 1)
    assert plan(1, 16, 4096, "float32", kernel_size=3)["blocks_per_sample"] == 16  # one channel each


@pytest.mark.parametrize("name", [name for name, device in DEVICES.items() if 80 <= device["capability"] < 90])
def test_without_clusters_a_sample_has_one_block(name: str) -> None:
    enough = (DEVICES[name]["multiprocessors"] + 1) // 2  # samples, for half of the multiprocessors
    made = plan(enough, 512, 49, device=name)
    assert (made["path"], made["blocks_per_sample"], made["bulk"]) == ("one_pass", 1, False)
    assert "too few samples" in plan(enough - 1, 512, 49, device=name)["reason"]


# --- two phases, by hand ----------------------------------------------------------------------------------------------


def test_tiles_of_planes() -> None:
    # Planes of 56 * 56 * 2 = 6272 bytes. Half of the L2, 20 MiB, for 4 * 108 tiles of 2 maps: 24272 bytes, so 3 planes.
    made = plan(256, 256, 56 * 56, device="a100", kernel_size=5)
    assert (made["layout"], made["vector"], made["straddle"]) == ("planes", 8, False)
    assert made["tiling"] == {"channels": 3, "positions": 3136, "blocks": 1, "count": 86}
    assert (made["threads"], made["grid"]) == (256, 4 * 108)
    assert (made["tickets"], made["lag"]) == (2 * 256 * 86, 86 + 432)
    assert made["gate_numbers"] == 2 * (256 + 4) + 5 + 1  # means, gates; the weight and a bias


def test_odd_planes_are_loaded_by_16_bytes() -> None:
    made = plan(1, 2048, 49, device="a100")  # 98 bytes
    assert (made["path"], made["vector"], made["straddle"]) == ("two_phase", 8, True)
    assert (plan(1, 2048, 49, device="a100", gaps=True)["vector"], plan(1, 3, 49)["vector"]) == (1, 1)


def test_tiles_of_rows() -> None:
    # 3 MiB for 4 * 72 tiles of 2 maps: 5461 bytes, 2730 halfs: 21 positions of 256 bytes. 3136 / 21 = 149.3: 150 parts.
    made = plan(32, 256, 56 * 56, layout="channels_last", device="a10")
    assert made["tiling"] == {"channels": 128, "positions": 21, "blocks": 150, "count": 300}
    assert made["grid"] == 288


def test_extremes_are_sensible() -> None:
    for layout, c in itertools.product(LAYOUTS, (1, 64)):
        long = plan(1, c, 10**7, layout=layout)
        assert 200 < long["tiling"]["blocks"] <= 256  # one thread adds them up
        assert long["grid"] >= 3 * 132
    wide = plan(1, 100_000, 3, "float64", "channels_last")
    assert wide["layout"] == "rows" and not wide["gate_in_shared_memory"] and wide["shared_bytes"] < 16384


def test_layouts_are_those_of_feature_maps() -> None:
    for layout, c, s, walked in (
        ("contiguous", 8, 9, "planes"),
        ("channels_last", 8, 9, "rows"),
        ("contiguous", 8, 1, "rows"),
        ("channels_last", 1, 9, "planes"),
        ("channels_last", 1, 1, "rows"),
    ):
        assert plan(2, c, s, layout=layout)["layout"] == walked, (layout, c, s)


# --- rules that stand above the plan ----------------------------------------------------------------------------------

RULE = {"direction": "forward", "dtype": "float16", "layout": "planes", "n": 32, "c": 512, "s": 784}
RULE |= {"blocks": 0, "threads": 0}
FREE = plan(32, 512, 784)


@pytest.fixture(autouse=True)
def no_rules() -> Iterator[None]:
    _C.set_tuning([])
    yield
    _C.set_tuning([])


def chosen(made: dict[str, Any]) -> tuple[int, int, int]:
    return made["blocks_per_sample"], made["position_parts"], made["threads"]


def test_a_rule_is_followed() -> None:
    _C.set_tuning([RULE | {"blocks": 8}])
    assert chosen(plan(32, 512, 784)) == (8, 1, 512)
    _C.set_tuning([RULE | {"blocks": 8, "threads": 128}])
    assert chosen(plan(32, 512, 784)) == (8, 1, 128)
    _C.set_tuning([RULE | {"layout": "rows", "blocks": 16, "parts": 8, "threads": 64}])
    assert chosen(plan(32, 512, 784, layout="channels_last")) == (16, 8, 64)
    _C.set_tuning([RULE | {"blocks": -1}])
    made = plan(32, 512, 784)
    assert (made["path"], made["reason"]) == ("two_phase", "the tuning table asks for the two-phase kernel")


def test_a_rule_is_for_exactly_its_calls() -> None:
    call = {"direction": "forward", "dtype": "float16", "layout": "contiguous", "n": 32, "c": 512, "s": 784}
    call |= {"variant": "eca", "device": "h100"}
    others = {"direction": "backward", "dtype": "bfloat16", "layout": "channels_last", "n": 31, "c": 504, "s": 783}
    free = {name: _C.plan(**call | {name: other}) for name, other in others.items()}
    _C.set_tuning([RULE | {"threads": 64}])
    assert _C.plan(**call)["threads"] == 64
    for name, other in others.items():
        assert _C.plan(**call | {name: other}) == free[name], name


def test_a_rule_may_be_for_one_variant() -> None:
    def blocks() -> list[int]:
        return [plan(32, 512, 784, variant=name, hidden=32)["blocks_per_sample"] for name in VARIANTS]

    assert blocks() == [16] * 3
    _C.set_tuning([RULE | {"blocks": 12, "variant": "bidirectional_eca"}])
    assert blocks() == [16, 16, 12]


def test_n_0_is_any_and_the_first_rule_counts() -> None:
    _C.set_tuning([RULE | {"n": 32, "blocks": 12}, RULE | {"n": 0, "blocks": 8}, RULE | {"n": 64, "blocks": 16}])
    assert [plan(n, 512, 784)["blocks_per_sample"] for n in (32, 33, 64)] == [12, 8, 8]


# 784 KB in one block; more blocks than a cluster may have; parts of planes.
@pytest.mark.parametrize("wish", [{"blocks": 1}, {"blocks": 17}, {"parts": 2}], ids=str)
def test_a_rule_that_does_not_fit_is_ignored(wish: dict[str, int]) -> None:
    _C.set_tuning([RULE | wish])
    assert plan(32, 512, 784) == FREE


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n: expected an integer from 0 to 281474976710656, got -1"),
        ({"c": 2**20, "s": 2**30}, "n, c, s: expected at most 2^48 elements, a size of 0 counting as 1, got "),
        ({"dtype": "half"}, "dtype: expected one of float32, float64, float16, bfloat16, got 'half'"),
        ({"layout": "NHWC"}, "layout: expected one of contiguous, channels_last, got 'NHWC'"),
        ({"variant": "gct"}, "variant: expected one of eca, multi_kernel_eca, bidirectional_eca, got 'gct'"),
        ({"direction": "up"}, "direction: expected one of forward, backward, got 'up'"),
        ({"device": "h1000"}, "device: expected one of a10, a100, b200, h100, h100-mig-1g, "),
        ({"device": 7}, "device: expected a name or a dict, got 7"),
        ({"device": {"capability": 90}}, "device: expected a dict with 'multiprocessors', got one without"),
        (
            {"device": {**DEVICES["h100"], "max_threads": 16}},
            "device: max_threads: expected an integer from 32 to 65536, got 16",
        ),
        (
            {"device": {**DEVICES["h100"], "l2": "50 MB"}},
            "device: l2: expected an integer from 0 to 281474976710656, got '50 MB'",
        ),
        ({"kernel_size": 4}, "kernel_size: expected an odd number, got 4"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        plan(**{"n": 2, "c": 8, "s": 8, **arguments})
