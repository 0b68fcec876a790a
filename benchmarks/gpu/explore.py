# SPDX-License-Identifier: MIT
"""Which launch plan is best: clusters as the driver counts them, and every choice of ranks, stages and threads timed.

Writes ``tuning.json``, which ECA_CUDA_TUNING makes the plan load: the choices that beat the plan's own beyond noise.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eca_cuda import plan_report
from eca_cuda._ext import _C
from eca_cuda.testing import ECA

from .. import correctness
from ..cases import Case, mobilenetv2, resnet50
from ..correctness import GateError, differentiates
from ..plan import Job
from ..results import write_whole
from ..run import make_call, make_sets
from ..timing import Call, Timing, verdict
from .machine import Machine, maps_in_turn, time_replays
from .providers import make_layers, make_module
from .record import Found, Record
from .session import Session

TABLE = "tuning.json"
KEY = ("direction", "variant", "dtype", "layout", "c", "s", "n")  # of a rule: the plan takes the first that fits
LEAST_GAIN = 1.02  # of a rule; of dozens of equal plans one is always the fastest by some noise
RANKS, STAGES, THREADS = (1, 2, 4, 8, 16), (1, 2, 3), (256, 512)
_LAYOUTS = {"contiguous": "planes", "channels_last": "rows"}  # in the words of the plan


class Choice(NamedTuple):
    """What a rule of the tuning table decides; 0 leaves it to the plan."""

    ranks: int = 0  # -1: the two-phase kernel
    stages: int = 0
    threads: int = 0
    lanes: int = 0  # threads to a plane; -1: groups of planes to a thread
    piece: int = 0  # bytes
    evict_first: int = 0  # by the L2 cache; 1: what is read, 2: what is written, 3: both; -1: neither
    persistent: int = 0  # 1: clusters that take samples in turn; -1: one for each sample

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._asdict().items() if value)


@dataclass(frozen=True)
class Question:
    """One thing that the design note predicts, and the candidates that answer it."""

    what: str
    predicted: str
    job: Job
    candidates: tuple[Choice, ...]
    is_read: bool = False  # the output, at once, as by the next layer of a network

    def __str__(self) -> str:
        return f"{self.what}: {self.job}"


@dataclass(frozen=True)
class Clusters:
    """The driver's count of clusters that run at once (where one block is a cluster, of blocks), by shared memory."""

    ranks: int
    shared_kb: int
    threads: int = 512

    def __str__(self) -> str:
        return f"clusters of {self.ranks} blocks, {self.shared_kb} KB each"


Unit = Question | Clusters


def units(dry: bool = False) -> list[Unit]:
    """What is tried, the most valuable first. Predictions are those of the design note, before any GPU was seen."""
    if dry:
        case = Case("resnet50.layer4.n2", 2, 16, 7, 8)
        return [Clusters(2, 48), Question("a rehearsal", "", _job(case), (Choice(1, 1, 128), Choice(2, 1, 128)))]
    layer1, _, _, layer4 = resnet50(256)
    small1, *_, small4 = resnet50(1)
    stages = tuple(Choice(ranks, stage, 512) for ranks in (8, 16) for stage in STAGES)
    ranks = tuple(Choice(rank, 1) for rank in (1, 2, 4, 8, 16))
    grids = tuple(Choice(16, 1, 512, persistent=which) for which in (-1, 1))
    two_phase = Choice(ranks=-1)
    at_batch_1 = (*ranks, two_phase)
    lanes = tuple(Choice(lanes=n) for n in (-1, 1, 2, 4, 8))
    pieces = tuple(Choice(piece=kb << 10) for kb in (32, 64, 128))  # eight at most to a slab: 16 KB is the plan's
    hints = tuple(Choice(evict_first=which) for which in (-1, 1, 2, 3))
    asked: list[Unit] = [
        Question("one stage or more", "94 to 98 % of a copy with one, 97 to 99 % with two", _job(layer1), stages),
        Question("one stage or more, backward", "two stages gain less", _job(layer1, "backward"), stages),
        Question(
            "a cluster for each sample, or persistent ones",
            "94 % of a copy with one for each, 97 to 99 % with persistent ones of two stages",
            _job(layer1),
            (*grids, Choice(16, 2, 512)),
        ),
        Question(
            "resident or two-phase, float32",
            "92 % of a copy with a cluster for each sample, two-phase 0.8 of resident",
            _job(layer1, dtype="float32"),
            (*grids, two_phase),
        ),
        Question("256 or 512 threads", "less than 2 %", _job(layer1), (Choice(threads=256), Choice(threads=512))),
        Question("cluster size, 7x7 planes", "small clusters", _job(layer4), ranks),
        Question(
            "groups or shared planes, 7x7", "groups as fast as a copy, lanes 0.6 to 0.8 of it", _job(layer4), lanes
        ),
        Question("pieces of a slab", "less than 2 %", _job(layer1), pieces),
        Question("cache hints", "less than 2 %", _job(layer1), hints),
        Question("cache hints, output read at once", "the plan's are best", _job(resnet50(8)[0]), hints, is_read=True),
        Question("cluster size at batch 1", "5 to 7 us, 16 best or equal", _job(small1), at_batch_1),
        Question("cluster size at batch 1, 7x7 planes", "5 to 7 us, 16 best or equal", _job(small4), at_batch_1),
    ]
    asked += [Clusters(ranks, kb) for ranks in (1, 2, 4, 8, 12, 16) for kb in (48, 98, 110, 196, 220)]  # 1: occupancy
    every = tuple(Choice(*sizes) for sizes in itertools.product(RANKS, STAGES, THREADS))
    every += (*(Choice(rank, 1, persistent=-1) for rank in RANKS), two_phase)
    for direction, layout, dtype in itertools.product(("forward", "backward"), _LAYOUTS, ("float16", "float32")):
        for case in (*resnet50(256), *resnet50(32), *resnet50(1), *mobilenetv2(256)):
            asked.append(Question("all", "", _job(case, direction, dtype, layout), every))
    return asked


def measure(session: Session) -> int:
    """The step ``explore``."""
    tuning = Tuning(session.machine.dry)

    def work(unit: Unit) -> Found:
        write_table(session.record)  # of all units before: a process that is ended leaves it
        if isinstance(unit, Clusters):
            if tuning.clusters is None:
                raise RuntimeError("explore: expected a build that can ask the driver for clusters, got one without")
            counted = tuning.clusters(unit.ranks, unit.threads, unit.shared_kb << 10)
            return {"clusters": [{**asdict(unit), "clusters": counted}]}
        return {"candidates": [try_all(unit, session.machine, tuning)]}

    status = session.each(units(session.machine.dry), work)
    write_table(session.record)
    return status


class Tuning:
    """The plan's hooks, ``clusters`` None in a build without; in a rehearsal, substitutes where they are missing."""

    def __init__(self, dry: bool) -> None:
        if not hasattr(_C, "set_tuning") and not dry:
            raise RuntimeError("explore: expected a build with set_tuning, got one without")
        self.set = getattr(_C, "set_tuning", lambda rules: None)
        self.clusters = (lambda *size: 0) if dry else getattr(_C, "clusters", None)

    @contextmanager
    def rule(self, job: Job, choice: Choice) -> Iterator[None]:
        """Inside, the plan follows this choice for the maps of ``job``; ValueError if it can't."""
        self.set([make_rule(job, choice, n=0)])
        try:
            taken = taken_plan(job)
            if any(wanted not in (0, got) for wanted, got in zip(choice, taken, strict=True)):
                raise ValueError(f"the plan takes {taken}")
            yield
        finally:
            self.set([])


def resident_plan(job: Job) -> dict[str, Any]:
    """All that the plan says."""
    call = {"layout": job.layout, "direction": job.phase}
    plan: dict[str, Any] = plan_report.collect(job.case.shape, job.dtype, **call)["plan"]["resident"]
    return plan


def work_of(job: Job) -> dict[str, Any]:
    """The plan but for what makes no difference: of as many clusters as samples, a persistent grid is a plain one."""
    plan = resident_plan(job)
    return {key: plan[key] for key in plan if key not in ("persistent", "reason")}


def taken_plan(job: Job) -> Choice:
    """What the resident plan for ``job`` is; the two-phase kernel where there is none."""
    resident = resident_plan(job)
    if not resident["possible"]:
        return Choice(ranks=-1)
    lanes = resident["lanes"] or -1
    sizes = (resident[name] for name in ("ranks", "stages", "threads"))
    hint, persistent = resident["evict_first"] or -1, 1 if resident["persistent"] else -1
    return Choice(*sizes, lanes, resident["piece_bytes"], hint, persistent)


def make_rule(job: Job, choice: Choice, n: int) -> dict[str, Any]:
    """A line of the tuning table; n = 0 stands for every batch size."""
    case = job.case
    what = {"direction": job.phase, "variant": job.variant, "dtype": job.dtype, "layout": _LAYOUTS[job.layout]}
    what |= {"c": case.c, "s": case.h * case.w, "n": n}
    return what | choice._asdict()


def try_all(question: Question, machine: Machine, tuning: Tuning) -> dict[str, Any]:
    """Check and capture each candidate under its own rule, then time them, the plan's choice and a copy together."""
    job = question.job
    module = make_module(job, machine.device)
    layers = make_layers(job, module, ("fused", "clone"))
    map_bytes = job.case.elements * getattr(torch, job.dtype).itemsize
    sets = make_sets(job, machine.device, maps_in_turn(machine, map_bytes))
    refused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    replays: dict[str, Call] = {}
    with torch.set_grad_enabled(differentiates(job.phase)):

        def capture(name: str) -> None:
            calls = [make_call(layers["clone" if name == "clone" else "fused"], job.phase, maps) for maps in sets]
            replays[name] = machine.replay([read_after(call) for call in calls] if question.is_read else calls)

        capture("clone")
        capture("plan")
        timed = [("plan", work_of(job))]
        for candidate in question.candidates:
            name = str(candidate)
            try:
                with tuning.rule(job, candidate):
                    work = work_of(job)
                    if same := [other for other, known in timed if known == work]:
                        raise ValueError(f"the same as {same[0]}")
                    correctness.check_batch(job, ECA, layers["fused"], sets[0])
                    capture(name)
                    timed.append((name, work))
            except GateError as error:
                wrong[name] = str(error)
            except (RuntimeError, ValueError) as error:  # it does not fit
                if not machine.is_usable():
                    raise
                refused[name] = str(error).splitlines()[0]
        timings = time_replays(machine, replays, len(sets))
    return {
        "question": question.what,
        "predicted": question.predicted,
        "is_read": question.is_read,
        "job": asdict(job),
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "refused": refused,
        "wrong": wrong,
    }


def read_after(call: Call) -> Call:
    """The call, and a copy of its output."""

    def both() -> object:
        y = call()
        assert isinstance(y, Tensor)
        return y.clone()

    return both


def write_table(record: Record) -> None:
    """``tuning.json`` beside the results: for the maps of each job the candidate that gains most over the plan's own.

    Several questions may be about the same maps, and of several rules for them the plan sees only the first. Times that
    hold more than the call say nothing about it.
    """
    all_tried = [tried for line in record.known.values() for tried in line.found.get("candidates", ())]
    found = [best for tried in all_tried if not tried["is_read"] and (best := best_rule(tried))]
    found.sort(key=lambda best: best[0])
    rules = {tuple(rule[name] for name in KEY): rule for _, rule in found}  # the last of several, which gains most
    write_whole(record.path.with_name(TABLE), json.dumps(list(rules.values()), indent=1) + "\n")


def best_rule(tried: dict[str, Any]) -> tuple[float, dict[str, Any]] | None:
    """What the timings of one question speak for: how many times faster than the plan's choice it is, and its line of
    the tuning table. None where the plan's choice stands.
    """
    timings = {name: Timing(**timing) for name, timing in tried["timings"].items()}
    plan = timings["plan"]
    faster = {name: t.q50 for name, t in timings.items() if name != "clone" and verdict(plan, t) == "faster"}
    if not faster:
        return None
    best = min(faster, key=lambda name: faster[name])
    if plan.q50 < LEAST_GAIN * faster[best]:
        return None
    choice = Choice(**{name: int(value) for name, value in (part.split("=") for part in best.split())})
    job = Job(**{**tried["job"], "case": Case(**tried["job"]["case"])})
    return plan.q50 / faster[best], make_rule(job, choice, job.case.n)


def _job(case: Case, direction: str = "forward", dtype: str = "float16", layout: str = "contiguous") -> Job:
    return Job(case, "eca", direction, dtype, layout, ("fused", "clone"))
