# SPDX-License-Identifier: MIT
"""Other launch plans are tried under their own rules, checked, and kept only where they are faster beyond noise."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.cases import Case, resnet50
from benchmarks.gpu import explore
from benchmarks.gpu.explore import Choice, Question, best_rule, make_rule, try_all, write_table
from benchmarks.gpu.machine import Rehearsal
from benchmarks.gpu.record import DONE, Line, Record
from benchmarks.gpu.session import Session
from benchmarks.plan import Job

SMALL = Case("resnet50.layer4.n3", 3, 16, 6, 8)


def job(phase: str = "forward", dtype: str = "float32") -> Job:
    return Job(SMALL, "eca", phase, dtype, "contiguous", ("fused", "clone"))


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    threads = torch.get_num_threads()
    yield Rehearsal()
    torch.set_num_threads(threads)


class FakeC:
    """The plan's hooks, and all the rules that they were given."""

    def __init__(self) -> None:
        self.rules: list[Any] = []

    def set_tuning(self, rules: list[dict[str, Any]]) -> None:
        self.rules.append(rules)

    def taken(self, job: Job) -> Choice:
        """Sixteen blocks have no room. The plan's own choice is 8."""
        (rule,) = (self.rules[-1] if self.rules else None) or [{"ranks": 8, "stages": 1}]
        return Choice(min(rule["ranks"], 8), rule["stages"], 512)

    def work(self, job: Job) -> dict[str, Any]:
        return self.taken(job)._asdict()

    def clusters(self, ranks: int, threads: int, shared_bytes: int) -> int:
        return 132 // ranks


def test_every_candidate_is_checked_and_captured_under_its_own_rule(
    monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal
) -> None:
    fake, during = FakeC(), []
    monkeypatch.setattr(explore, "_C", fake)
    monkeypatch.setattr(explore, "taken_plan", fake.taken)
    monkeypatch.setattr(explore, "work_of", fake.work)
    tuning = explore.Tuning(dry=False)

    def check(job: Job, *_: Any) -> None:
        (rule,) = fake.rules[-1]
        during.append((rule["ranks"], rule["stages"], rule["threads"]))
        if rule["ranks"] == 4:
            raise explore.GateError("4 is wrong")

    monkeypatch.setattr(explore.correctness, "check_batch", check)
    candidates = (Choice(2, 1), Choice(4, 1), Choice(16, 1), Choice(8, 1), Choice(2, 1, 512))
    found = try_all(Question("what", "guess", job("backward", "float16"), candidates), rehearsal, tuning)
    assert during == [(2, 1, 0), (4, 1, 0)] and fake.rules[-1] == []
    assert found["timings"].keys() == {"clone", "plan", "ranks=2 stages=1"}
    assert found["refused"] == {
        "ranks=16 stages=1": "the plan takes ranks=8 stages=1 threads=512",
        "ranks=8 stages=1": "the same as plan",
        "ranks=2 stages=1 threads=512": "the same as ranks=2 stages=1",
    }
    assert found["wrong"] == {"ranks=4 stages=1": "4 is wrong"}
    assert fake.rules[0] == [
        {"direction": "backward", "variant": "eca", "dtype": "float16", "layout": "planes", "c": 16, "s": 48, "n": 0}
        | Choice(ranks=2, stages=1)._asdict()
    ]
    assert tuning.clusters(4, 512, 1024) == 33


def test_a_build_without_the_hooks_is_refused_unless_in_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore, "_C", SimpleNamespace())
    explore.Tuning(dry=True).set([])
    with pytest.raises(RuntimeError, match="expected a build with set_tuning, got one without"):
        explore.Tuning(dry=False)


def tried(is_read: bool = False, **medians: float) -> dict[str, Any]:
    timings = {
        name.replace("__", "=").replace("_", " "): {"q20": m * 0.99, "q50": m, "q80": m * 1.01}
        for name, m in medians.items()
    }
    whole = {name: {**timing, "rounds": 7, "repetitions": 1} for name, timing in timings.items()}
    case = {"name": "resnet50.layer1.n256", "n": 256, "c": 256, "h": 56, "w": 56, "count": 3}
    of = {"case": case, "variant": "eca", "phase": "forward", "dtype": "float16", "layout": "channels_last"}
    about = {"is_read": is_read, "job": {**of, "providers": ["fused"]}}
    return {**about, "timings": whole, "refused": {}, "wrong": {}}


def test_only_what_is_faster_beyond_noise_goes_into_the_table(tmp_path: Path) -> None:
    assert best_rule(tried(clone=0.5, plan=1.0, ranks__8_threads__512=0.99)) is None
    record = Record(tmp_path)
    faster = tried(**{"clone": 0.5, "plan": 1.0, "ranks=8 threads=512": 0.9, "ranks=4 lanes=-1": 0.8})
    record.write(Line("explore", "a", DONE, found={"candidates": [faster]}))
    write_table(record)
    (rule,) = json.loads((tmp_path / "tuning.json").read_text())
    expected = {"direction": "forward", "variant": "eca", "dtype": "float16", "layout": "rows"}
    expected |= {"c": 256, "s": 3136, "n": 256}
    assert rule == expected | Choice(ranks=4, lanes=-1)._asdict()
    assert rule.keys() == make_rule(job(), Choice(), 0).keys()
    assert tuple(expected) == explore.KEY


def test_a_gain_that_equal_plans_have_by_chance_makes_no_rule() -> None:
    steady = {"q20": 0.985, "q50": 0.985, "q80": 0.985, "rounds": 7, "repetitions": 1}  # beyond the noise
    found = tried(clone=0.5, plan=1.0, ranks__8=0.985)
    found["timings"] |= {"ranks=8": steady, "plan": {**steady, "q20": 1.0, "q50": 1.0, "q80": 1.0}}
    assert best_rule(found) is None
    found["timings"]["ranks=8"] = {**steady, "q20": 0.97, "q50": 0.97, "q80": 0.97}
    assert best_rule(found) is not None


@pytest.mark.skipif(not hasattr(explore._C, "set_tuning"), reason="this build's plan takes no tuning")
def test_what_would_launch_the_same_is_the_same_work() -> None:
    """One sample has one cluster, persistent or not; a large batch has not."""
    tuning, found = explore.Tuning(dry=False), []
    for n in (1, 256):
        wanted = Job(resnet50(n)[1], "eca", "forward", "float16", "contiguous", ())
        for persistent in (1, -1):
            with tuning.rule(wanted, Choice(16, 1, persistent=persistent)):
                found.append(explore.work_of(wanted))
    assert found[0] == found[1] and found[2] != found[3]


def test_of_questions_about_the_same_maps_the_one_with_the_greatest_gain_makes_the_rule(tmp_path: Path) -> None:
    """The plan takes the first rule that fits. What is faster there may have been timed beside a faster plan."""
    record = Record(tmp_path)
    asked = {
        "little": tried(clone=0.5, plan=0.8, ranks__8=0.7),
        "most": tried(clone=0.5, plan=1.0, stages__2=0.75),
        "less": tried(clone=0.5, plan=1.0, threads__256=0.9),
        "more than the call": tried(True, clone=0.5, plan=1.0, ranks__16=0.5),
    }
    for name, found in asked.items():
        record.write(Line("explore", name, DONE, found={"candidates": [found]}))
    write_table(record)
    (rule,) = json.loads((tmp_path / "tuning.json").read_text())
    assert {name: rule[name] for name in Choice._fields if rule[name]} == {"stages": 2}


def test_a_process_that_is_ended_leaves_the_table_of_the_units_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal
) -> None:
    found = [tried(clone=0.5, plan=1.0, ranks__4=0.8)]

    def next_found(*_: Any) -> dict[str, Any]:
        if not found:
            raise KeyboardInterrupt
        return found.pop()

    asked = [Question(name, "", job(), ()) for name in ("first", "second")]
    monkeypatch.setattr(explore, "units", lambda dry: asked)
    monkeypatch.setattr(explore, "try_all", next_found)
    with pytest.raises(KeyboardInterrupt):
        explore.measure(Session("explore", Record(tmp_path), rehearsal, time.monotonic() + 60))
    (rule,) = json.loads((tmp_path / "tuning.json").read_text())
    assert rule["ranks"] == 4


def test_exploration_asks_what_the_design_note_predicts_first() -> None:
    asked = [unit for unit in explore.units() if isinstance(unit, Question)]
    assert len({str(unit) for unit in explore.units()}) == len(explore.units())
    predicted = [unit for unit in asked if unit.predicted]
    assert asked[: len(predicted)] == predicted and len(predicted) == 12


@pytest.mark.skipif(not hasattr(explore._C, "set_tuning"), reason="this build's plan takes no tuning")
@pytest.mark.parametrize(("direction", "layout"), [("forward", "contiguous"), ("backward", "channels_last")])
def test_rules_are_what_the_plan_understands(direction: str, layout: str) -> None:
    """The real hook and the real plan, for an H100 where there is no GPU."""
    wanted = Job(resnet50(256)[1], "eca", direction, "float16", layout, ())
    tuning = explore.Tuning(dry=False)
    before = explore.taken_plan(wanted)
    other = Choice(16, 1, 256, piece=1 << 15, lanes=2 if layout == "contiguous" else 0, evict_first=2, persistent=-1)
    with tuning.rule(wanted, other):
        taken = explore.taken_plan(wanted)
        assert taken != before and all(ours in (0, theirs) for ours, theirs in zip(other, taken, strict=True))
    assert explore.taken_plan(wanted) == before
    with pytest.raises(ValueError, match="the plan takes"), tuning.rule(wanted, Choice(1, 1, 512)):
        pass  # a sample of 784 KB in one block
    with tuning.rule(wanted, Choice(ranks=-1)):
        assert explore.taken_plan(wanted) == Choice(ranks=-1)
