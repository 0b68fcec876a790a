# SPDX-License-Identifier: MIT
"""The CUDA emulator's own tests: right kernels give no report, and the build named here finds each planted bug.

tests/emulator/bugs/ holds the kernels; a `// [name]` there marks the line that a report has to name.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
from emulator.build import FLAVOURS, HERE, Flavour, build, missing, preload, sanitizer_options, wrapper

BUGS = HERE / "bugs"
FAMILIES = ("rows", "planes", "total", "stages", "copies", "tickets", "chain", "features", "device")

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"CUDA KERNELS UNTESTED: {missing()}")


# --- The expected output of a run


@dataclass(frozen=True)
class Result:
    status: int
    output: str


@dataclass(frozen=True)
class Sign:
    """An exit status, and patterns that one report matches. ``{name}`` stands for a marked line."""

    status: int
    patterns: tuple[str, ...]

    def seen(self, result: Result) -> bool:
        reports = re.split(r"={18,}", result.output)  # ThreadSanitizer's line between reports
        patterns = [re.sub(r"\{(\w+)\}", lambda m: place(m[1]), p) for p in self.patterns]
        return result.status == self.status and any(all(re.search(p, r) for p in patterns) for r in reports)


@lru_cache
def place(name: str) -> str:
    """``file:line`` of a mark, as a pattern."""
    found = [
        rf"{re.escape(path.name)}:{number}\b"
        for path in sorted(BUGS.glob("*.cu*"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if f"// [{name}]" in line
    ]
    assert len(found) == 1, f"{name} marks {found}"
    return found[0]


def wrong(family: str) -> Sign:
    return Sign(1, (rf"WRONG {family}\n",))


def fault(*patterns: str) -> Sign:
    return Sign(2, (rf"FAULT {patterns[0]}", *patterns[1:]))


def asan(kind: str, mark: str) -> Sign:
    return Sign(1, (rf"ERROR: AddressSanitizer: {kind}", rf"#0 .*{{{mark}}}"))


def ubsan(problem: str, mark: str) -> Sign:
    return Sign(1, (rf"{{{mark}}}:\d+: runtime error: {problem}",))


def race(*marks: str) -> Sign:
    """A race of two accesses on these lines, or of two on the same line."""
    two = marks if len(marks) == 2 else marks * 2
    lines = [rf"#[01] .*{{{mark}}}" for mark in two]  # 1: of a function of the device API
    either = "|".join(rf"{a}(?s:.*)Previous .*\n(.*\n)? +{b}" for a, b in (lines, lines[::-1]))
    return Sign(66, ("ThreadSanitizer: data race", either))


def hardware_race(mark: str) -> Sign:
    """A race with the hardware: fills at the start and end of a block, bulk copies."""
    return Sign(66, ("ThreadSanitizer: data race", rf"#0 .*{{{mark}}}", r"#0 (__tsan|emulator::)"))


def copy_race(mark: str) -> Sign:
    """A race with an asynchronous copy by a thread."""
    return Sign(66, ("ThreadSanitizer: data race", rf"#[01] .*{{{mark}}}", r"emulator::thread_load"))


# Bug, family, the build that has to find the bug, the schedule, and the report.
TABLE: list[tuple[str, str, Flavour, int, Sign]] = []


def finds(bug: str, family: str, *builds: tuple[Flavour, int, Sign]) -> None:
    TABLE.extend((bug, family, *found) for found in builds)


finds("no_barrier_after_write", "rows", ("plain", 0, wrong("rows")), ("thread", 1, race("read", "write")))
finds("no_barrier_before_reuse", "rows", ("plain", 0, wrong("rows")), ("thread", 0, race("read", "write")))
finds(
    "barrier_in_one_warp",
    "rows",
    ("plain", 0, fault("{half}: other threads wait at {reuse}")),
    ("address", 1, fault("{reuse}: other threads wait at {half}")),
)
finds(
    "static_shared_index",
    "rows",
    ("plain", 0, wrong("rows")),
    ("address", 0, ubsan(r"index 3\d out of bounds for type 'float \[2\]'", "write")),
)
LEFT = fault("deadlock:", r"\n  4 threads of block \(0,0,0\) in a warp collective at {shuffle}\n")
finds("lanes_leave_shuffle", "rows", ("plain", 0, LEFT), ("thread", 0, LEFT))
finds("read_past_row", "rows", ("plain", 0, wrong("rows")), ("address", 0, asan("heap-buffer-overflow", "row")))
finds("misaligned_vector", "rows", ("plain", 0, wrong("rows")), ("address", 0, ubsan(".*misaligned", "vector")))
finds("stack_overrun", "rows", ("address", 0, ubsan("index 4 out of bounds", "local")))
finds("lockstep", "rows", ("plain", 0, wrong("rows")), ("thread", 0, race("stage", "neighbour")))
finds("shuffle_as_barrier", "rows", ("thread", 0, race("stage", "neighbour")))
finds("uninitialized_shared", "rows", ("plain", 0, wrong("rows")), ("address", 1, wrong("rows")))
finds("no_barrier_after_staging", "planes", ("plain", 0, wrong("planes")), ("thread", 0, race("staged", "staging")))
finds(
    "no_last_cluster_sync",
    "planes",
    ("plain", 0, wrong("planes")),
    ("address", 0, asan("use-after-poison", "peer")),
    ("thread", 1, hardware_race("peer")),
)
finds("no_room_for_halo", "planes", ("address", 0, asan("use-after-poison", "staging")))
finds("halo_too_wide", "planes", ("plain", 0, wrong("planes")), ("address", 0, asan("use-after-poison", "halo")))
finds("dynamic_shared_overrun", "planes", ("address", 0, asan("use-after-poison", "overrun")))
finds(
    "no_first_cluster_sync",
    "planes",
    ("plain", 0, wrong("planes")),
    ("address", 0, asan("use-after-poison", "peer")),
    ("thread", 0, hardware_race("peer")),
)
finds("block_skips_cluster_sync", "planes", ("plain", 0, fault("{first}: other threads wait at {last}")))
finds("weights_overrun", "planes", ("address", 0, asan("heap-buffer-overflow", "weight")))
for missing_order in ("no_fence_before_count", "no_fence_after_count", "relaxed_count"):
    finds(missing_order, "total", ("thread", 0, race("gather", "partial")), ("thread", 1, race("gather", "partial")))
finds("all_blocks_write", "total", ("thread", 0, race("harmless")))
UNINITIALIZED = "{await}: an mbarrier that was never initialized"
finds("no_barrier_after_init", "stages", ("plain", 1, fault(UNINITIALIZED)), ("thread", 0, race("await", "init")))
finds(
    "load_not_awaited",
    "stages",
    ("plain", 0, fault(".*more arrivals than the mbarrier expects")),
    ("address", 0, asan("use-after-poison", "twice")),
    ("thread", 1, hardware_race("twice")),
)
finds("no_proxy_fence", "stages", ("thread", 0, hardware_race("twice")))
finds("stage_overwritten", "stages", ("plain", 0, wrong("stages")))
finds("exit_before_stored", "stages", ("plain", 0, fault("exits before its bulk stores have read shared memory")))
finds(
    "expects_too_much",
    "stages",
    ("plain", 0, fault(r"deadlock:", r"64 threads of block \(0,0,0\) in an mbarrier at {await}")),
)
finds("wrong_parity", "stages", ("plain", 1, fault("deadlock")), ("address", 0, asan("use-after-poison", "twice")))
finds("copy_not_awaited", "copies", ("plain", 0, wrong("copies")), ("address", 0, asan("use-after-poison", "taken")))
finds(
    "copies_of_others", "copies", ("address", 0, asan("use-after-poison", "taken")), ("thread", 1, copy_race("taken"))
)
finds("copied_over", "copies", ("thread", 0, copy_race("taken")), ("thread", 1, copy_race("taken")))
finds("copy_of_12_bytes", "copies", ("plain", 0, fault("{copy}: asynchronous copies are of 4, 8 or 16 bytes")))
finds("copy_not_committed", "copies", ("plain", 0, fault("{oldest}: .*waited for before they are committed")))
POLLING = (r"deadlock:", r"1 thread of block \(\d,0,0\) in __nanosleep \(polling\) at {poll}")
BEHIND = r"63 threads of block \(\d,0,0\) in __syncthreads at {behind}"
for flavour in FLAVOURS:
    for schedule in (0, 1, 7):
        finds("flag_never_raised", "tickets", (flavour, schedule, fault(*POLLING, BEHIND)))
finds("relaxed_flag", "tickets", ("thread", 1, race("collect", "publish")), ("thread", 7, race("collect", "publish")))
finds("relaxed_poll", "tickets", ("thread", 1, race("collect", "publish")))
finds("plain_flag", "tickets", ("thread", 1, race("plain")))
# The chain ends only if all blocks run at once, which is not guaranteed: under schedule 1 they do (below).
TURN = r"1 thread of block \(0,0,0\) in __nanosleep \(polling\) at {turn}"
finds("waits_for_later_block", "chain", ("plain", 0, fault("deadlock:", TURN)), ("thread", 0, fault("deadlock:", TURN)))


# --- Running


@lru_cache
def program(flavour: Flavour) -> Path:
    return build("bugs", [*sorted(BUGS.glob("*.cu")), BUGS / "main.cpp"], flavour, executable=True)


def run(flavour: Flavour, bug: str, family: str, *schedules: int) -> Result:
    command = [*wrapper(flavour), str(program(flavour)), bug, family, *map(str, schedules)]
    environment = {**os.environ, **sanitizer_options(flavour)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("family", FAMILIES)
def test_right_kernels_run_in_silence(family: str, flavour: Flavour) -> None:
    result = run(flavour, "none", family, 0, 1, 7)
    assert result == Result(0, "right\n")
    assert not any(sign.seen(result) for *_, sign in TABLE)


@pytest.mark.parametrize(
    "bug, family, flavour, schedule, sign", TABLE, ids=[f"{bug}-{f}-{s}" for bug, _, f, s, _ in TABLE]
)
def test_bugs_are_found(bug: str, family: str, flavour: Flavour, schedule: int, sign: Sign) -> None:
    result = run(flavour, bug, family, schedule)
    assert sign.seen(result), f"{sign}\n{result.output}"


def test_every_bug_has_a_build_that_finds_it() -> None:
    listed = set(re.findall(r"X\((\w+)\)", (BUGS / "bugs.h").read_text().split("namespace")[0])) - {"none", "X"}
    assert {bug for bug, *_ in TABLE} == listed


def test_all_blocks_are_resident_in_schedule_1() -> None:
    """A chain of polls, of which one block proceeds each round, is not reported as a deadlock."""
    assert run("plain", "waits_for_later_block", "chain", 1) == Result(0, "right\n")


# --- Inside Python, where sanitizers must be preloaded

IN_PYTHON = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.emulator_set_device(3, 64, 227 << 10, 64 << 10, 90)
words = [b"main", *map(str.encode, sys.argv[2:])]
status = library.main(len(words), (ctypes.c_char_p * len(words))(*words))
print("launches", library.emulator_launches(), flush=True)
sys.exit(status)
"""


def run_in_python(flavour: Flavour, *arguments: str) -> Result:
    library = program(flavour).parent.parent / "libbugs.so"
    command = [*wrapper(flavour), sys.executable, "-c", IN_PYTHON, str(library), *arguments]
    environment = {**os.environ, **preload(flavour)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return Result(done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_libraries_load_into_python(flavour: Flavour) -> None:
    assert run_in_python(flavour, "none", "planes", "0", "1") == Result(0, "right\nlaunches 2\n")


def test_reports_come_out_of_python() -> None:
    result = run_in_python("address", "dynamic_shared_overrun", "planes", "0")
    assert asan("use-after-poison", "overrun").seen(result), result.output
    result = run_in_python("thread", "no_last_cluster_sync", "planes", "1")
    assert hardware_race("peer").seen(result), result.output


# --- build.py


def test_nothing_is_built_twice_and_changes_are_noticed(tmp_path: Path) -> None:
    header, source = tmp_path / "answer.h", tmp_path / "answer.cu"
    header.write_text("constexpr int kAnswer = 41;\n")
    source.write_text(
        '#include "answer.h"\nextern "C" __attribute__((visibility("default"))) int answer() { return kAnswer; }\n'
    )
    library = build("answer", [source], "plain")
    built = library.stat().st_mtime_ns
    assert build("answer", [source], "plain").stat().st_mtime_ns == built
    header.write_text("constexpr int kAnswer = 42;\n")
    command = [sys.executable, "-c", "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).answer())"]
    assert subprocess.run([*command, str(build("answer", [source], "plain"))]).returncode == 42
    shutil.rmtree(library.parent / "answer")  # the next run's sources are elsewhere


def test_missing_headers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emulator.build._homes", list)
    assert "cuda/atomic" in (missing() or "") and "CUDA_HOME" in (missing() or "")
    with pytest.raises(RuntimeError, match=r"cuda_runtime\.h"):
        build("nothing", [], "plain")
