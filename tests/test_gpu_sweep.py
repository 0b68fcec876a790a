# SPDX-License-Identifier: MIT
"""Other launch plans are tried under their own rules, checked, and kept only where they are faster beyond noise."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import Case, resnet50
from benchmarks.correctness import Expected
from benchmarks.gpu import sweep
from benchmarks.gpu.machine import Rehearsal
from benchmarks.gpu.record import DONE, Line, Record
from benchmarks.gpu.session import Session
from benchmarks.gpu.sweep import TWO_PHASE, Choice, best_rule, following, taken, write_table
from benchmarks.plan import Job
from benchmarks.timing import Timing
from eca_cuda._ext import _C

SMALL = Case("resnet50.layer4.n3", 3, 16, 6, 8)


def job(case: Case = SMALL, direction: str = "forward", layout: str = "contiguous") -> Job:
    return Job(case, "eca", direction, "float16", layout, ("fused", "clone"))


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    threads = torch.get_num_threads()
    yield Rehearsal()
    torch.set_num_threads(threads)


# --- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "layout"), [("forward", "contiguous"), ("backward", "channels_last")])
def test_rules_are_what_the_plan_understands(direction: str, layout: str) -> None:
    wanted = job(resnet50(256)[1], direction, layout)
    before, rows = taken(wanted), layout == "channels_last"
    for other in (Choice(12, 4 if rows else 1, 256), TWO_PHASE):
        with following(wanted, other):
            assert taken(wanted) == other != before
    with following(wanted, Choice(1, 1, 512)):  # a sample of 784 KB in one block
        assert taken(wanted) == before
    assert taken(wanted) == before


def test_everything_is_swept_once_and_the_most_valuable_first() -> None:
    layers = sweep.layers()
    assert len({str(layer) for layer in layers}) == len(layers) == (3 * 4 + 10) * 2 * 2
    assert layers[:4] == [(case, "float16", "contiguous") for case in resnet50(256)]
    planes, rows = (sweep.candidates(layout) for layout in ("contiguous", "channels_last"))
    assert len(set(planes)) == len(planes) == 8 * 3 + 1
    assert set(planes) < set(rows) and Choice(16, 16, 128) in rows and Choice(12, 8, 128) not in rows


# --- a sweep -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_candidate_is_checked_and_captured_under_its_own_rule(
    direction: str, monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal
) -> None:
    """Those that the plan doesn't take, and its own choice, are left out; a wrong one is not timed."""
    wanted = job(direction=direction)
    own, right, wrong = taken(wanted), Choice(2, 1, 128), Choice(4, 1, 256)
    asked = [right, wrong, own, Choice(16, 16, 128), TWO_PHASE]
    monkeypatch.setattr(sweep, "candidates", lambda layout: asked)
    checked, captured = [], []
    check, replay = Expected.check, rehearsal.replay

    def checks(expected: Expected, results: dict[str, torch.Tensor]) -> None:
        checked.append(taken(wanted))
        name = {"forward": "y", "backward": "grad_x"}[direction]
        check(expected, {name: results[name] * (1.01 if taken(wanted) == wrong else 1)})

    def replays(*args: Any) -> Any:
        captured.append(taken(wanted))
        return replay(*args)

    monkeypatch.setattr(Expected, "check", checks)
    monkeypatch.setattr(rehearsal, "replay", replays)
    found = sweep.sweep(wanted, rehearsal)
    assert checked == [own, right, wrong, TWO_PHASE] and captured == [own, own, right, TWO_PHASE]
    assert found["timings"].keys() == found["tried"].keys() == {"rule", "clone", str(right), str(TWO_PHASE)}
    assert found["own"] == str(own) and found["job"] == asdict(wanted)
    assert found["wrong"].keys() == {str(wrong)} and "of its budget" in found["wrong"][str(wrong)]
    assert taken(wanted) == own


def test_the_fastest_are_timed_again(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    cuts = [Choice(blocks, 1, 128) for blocks in (1, 2, 3, 4, 6, 8)]
    monkeypatch.setattr(sweep, "candidates", lambda layout: cuts)
    asked = []

    def timed(machine: Rehearsal, replays: dict[str, Any], calls: int, budget: Any) -> dict[str, Timing]:
        asked.append(list(replays))
        return {name: timing(len(replays) - i) for i, name in enumerate(replays)}

    monkeypatch.setattr(sweep, "time_replays", timed)
    sweep.sweep(job(), rehearsal)
    assert asked[0] == ["rule", "clone", *map(str, cuts)]
    assert asked[1] == ["rule", "clone", *map(str, reversed(cuts[2:]))]


# --- the table -----------------------------------------------------------------------------------------------------


def timing(seconds: float, noise: float = 0.01) -> Timing:
    return Timing(seconds * (1 - noise), seconds, seconds * (1 + noise), 7, 1)


def swept(noise: float = 0.01, **seconds: float) -> dict[str, Any]:
    """What a sweep has found; names of choices begin with ``cut_``."""
    names = {name: name.removeprefix("cut_").replace("_", "/") for name in seconds}
    timings = {names[name]: asdict(timing(value, noise)) for name, value in seconds.items()}
    return {"job": asdict(job(resnet50(256)[0], layout="channels_last")), "timings": timings, "wrong": {}}


def test_the_fastest_beyond_noise_goes_into_the_table(tmp_path: Path) -> None:
    record = Record(tmp_path)
    found = swept(clone=0.5, rule=1.0, cut_8_2_512=0.9, cut_4_1_128=0.8)
    record.write(Line("sweep", "a", DONE, found={"sweep": [found, swept(clone=0.5, rule=1.0, cut_8_2_512=0.99)]}))
    write_table(record)
    (rule,) = json.loads((tmp_path / "tuning.json").read_text())
    what = {"direction": "forward", "variant": "eca", "dtype": "float16", "layout": "rows"}
    assert rule == {**what, "c": 256, "s": 3136, "n": 256, "blocks": 4, "parts": 1, "threads": 128}


def test_a_gain_that_equal_plans_have_by_chance_makes_no_rule() -> None:
    assert best_rule(swept(noise=0, clone=0.5, rule=1.0, cut_8_1_256=0.985)) is None
    assert best_rule(swept(noise=0, clone=0.5, rule=1.0, cut_8_1_256=0.97)) is not None


def test_a_process_that_is_ended_leaves_the_table_of_the_units_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal
) -> None:
    found = [swept(clone=0.5, rule=1.0, cut_4_1_128=0.8)] * 2  # forward and backward

    def next_found(*_: Any) -> dict[str, Any]:
        if not found:
            raise KeyboardInterrupt
        return found.pop()

    monkeypatch.setattr(sweep, "sweep", next_found)
    with pytest.raises(KeyboardInterrupt):
        sweep.measure(Session("sweep", Record(tmp_path), rehearsal, time.monotonic() + 60))
    rules = json.loads((tmp_path / "tuning.json").read_text())
    assert [rule["blocks"] for rule in rules] == [4, 4]
    _C.set_tuning(rules)
    _C.set_tuning([])
