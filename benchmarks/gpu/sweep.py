# SPDX-License-Identifier: MIT
"""The step ``sweep``: every way to cut a sample into blocks that the plan accepts, timed beside the plan's own choice.

A candidate is checked before its time counts. Three short samples of each find the fastest ones, which are timed again
beside the plan's choice and a copy. On an H100, 5000 candidates for 88 layers should take 30 s for float16, which comes
first, and 20 s for float32: 2 to 5 ms each to check and to capture, the rest to time. Writes ``tuning.json``, which
ECA_CUDA_TUNING makes the plan load: the candidates that beat the plan's choice beyond noise.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from eca_cuda._ext import _C
from eca_cuda.modules import adaptive_kernel_size
from eca_cuda.testing import ECA

from ..cases import Case, mobilenetv2, resnet50
from ..correctness import Expected, GateError, differentiates
from ..plan import LAYOUTS, Job
from ..results import write_whole
from ..run import make_call, make_sets
from ..timing import Budget, Timing, verdict
from .kernels import DRY_CASE
from .machine import Machine, maps_in_turn, time_replays
from .providers import make_layers, make_module
from .record import Found, Record
from .session import Session

TABLE = "tuning.json"
LEAST_GAIN = 1.02  # of a rule; of dozens of equal plans one is always the fastest by some noise
BLOCKS, PARTS, THREADS = (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 4, 8, 16), (128, 256, 512)
FIRST = Budget(warmup=0, sample=2e-4, total=0, min_rounds=3)
LAST = Budget(warmup=0, sample=1e-3, total=0, min_rounds=7)
FINALISTS = 4
MOST_CALLS = 128  # of a replay: enough for the maps of all layers to be the size of the L2 cache


class Choice(NamedTuple):
    """What a rule of the tuning table decides, written ``blocks/parts/threads``."""

    blocks: int
    parts: int
    threads: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


TWO_PHASE = Choice(-1, 0, 0)


class Layer(NamedTuple):
    """A unit of work."""

    case: Case
    dtype: str
    layout: str

    def __str__(self) -> str:
        return f"{self.case.name} {self.dtype} {self.layout}"

    def job(self, direction: str) -> Job:
        return Job(self.case, "eca", direction, self.dtype, self.layout, ("fused", "clone"))


def layers(dry: bool = False) -> list[Layer]:
    """What is swept, the most valuable first."""
    if dry:
        return [Layer(DRY_CASE, "float16", layout) for layout in LAYOUTS]
    cases = (resnet50(256), mobilenetv2(256), resnet50(32), resnet50(1))
    settings = itertools.product(("float16", "float32"), cases, LAYOUTS)
    return [Layer(case, dtype, layout) for dtype, some, layout in settings for case in some]


def candidates(layout: str) -> list[Choice]:
    """All that is tried; whether it fits is for the plan to say."""
    parts = PARTS if layout == "channels_last" else (1,)
    cuts = itertools.starmap(Choice, itertools.product(BLOCKS, parts, THREADS))
    return [*(cut for cut in cuts if cut.blocks % cut.parts == 0), TWO_PHASE]


def measure(session: Session) -> int:
    """The step ``sweep``."""

    def work(layer: Layer) -> Found:
        write_table(session.record)  # of all units before: a process that is ended leaves it
        return {"sweep": [sweep(layer.job(direction), session.machine) for direction in ("forward", "backward")]}

    status = session.each(layers(session.machine.dry), work)
    write_table(session.record)
    return status


def sweep(job: Job, machine: Machine) -> dict[str, Any]:
    """Check and capture each candidate under its own rule, time them together, and the fastest once more."""
    providers = make_layers(job, make_module(job, machine.device), job.providers)
    map_bytes = job.case.elements * getattr(torch, job.dtype).itemsize
    sets = make_sets(job, machine.device, min(MOST_CALLS, maps_in_turn(machine, map_bytes)))
    expected = Expected.of(job, ECA, providers["fused"].parameters, sets[0])
    own, pool, wrong = taken(job), machine.pool(), {}
    with torch.set_grad_enabled(differentiates(job.phase)):
        calls = {name: [make_call(layer, job.phase, maps) for maps in sets] for name, layer in providers.items()}

        def check() -> None:
            result: Any = calls["fused"][0]()
            expected.check({"y": result} if job.phase == "forward" else {"grad_x": result[0]})

        check()
        replays = {name: machine.replay(calls[of], pool) for name, of in (("rule", "fused"), ("clone", "clone"))}
        for choice in candidates(job.layout):
            with following(job, choice):
                if choice == own or taken(job) != choice:
                    continue
                try:
                    check()
                    replays[str(choice)] = machine.replay(calls["fused"], pool)
                except GateError as error:
                    wrong[str(choice)] = str(error)
        tried = {name: timing.q50 for name, timing in time_replays(machine, replays, len(sets), FIRST).items()}
        finalists = sorted(tried.keys() - {"rule", "clone"}, key=tried.__getitem__)[:FINALISTS]
        timed = {name: replays[name] for name in ("rule", "clone", *finalists)}
        timings = time_replays(machine, timed, len(sets), LAST)
    kept = {name: asdict(timing) for name, timing in timings.items()}
    return {"job": asdict(job), "own": str(own), "timings": kept, "tried": tried, "wrong": wrong}


@contextmanager
def following(job: Job, choice: Choice) -> Iterator[None]:
    """Inside, the plan follows this choice for the maps of ``job``, if it can."""
    _C.set_tuning([make_rule(job, choice)])
    try:
        yield
    finally:
        _C.set_tuning([])


def taken(job: Job) -> Choice:
    """What the plan for ``job`` is on the GPU here, or else on an H100."""
    n, c, h, w = job.case.shape
    call = (n, c, h * w, job.dtype, job.layout, job.variant, job.phase)
    plan = _C.plan(*call, _C.device() or "h100", kernel_size=adaptive_kernel_size(c))
    if plan["path"] != "one_pass":
        return TWO_PHASE
    return Choice(plan["blocks_per_sample"], plan["position_parts"], plan["threads"])


def make_rule(job: Job, choice: Choice) -> dict[str, Any]:
    """A line of the tuning table."""
    case, layout = job.case, "rows" if job.layout == "channels_last" else "planes"
    what = {"direction": job.phase, "variant": job.variant, "dtype": job.dtype, "layout": layout}
    return {**what, "c": case.c, "s": case.h * case.w, "n": case.n, **choice._asdict()}


def write_table(record: Record) -> None:
    """``tuning.json`` beside the results."""
    swept = [found for line in record.known.values() for found in line.found.get("sweep", ())]
    rules = [rule for found in swept if (rule := best_rule(found))]
    write_whole(record.path.with_name(TABLE), json.dumps(rules, indent=1) + "\n")


def best_rule(found: dict[str, Any]) -> dict[str, Any] | None:
    """The line of the tuning table that a sweep speaks for; None where the plan's choice stands."""
    timings = {name: Timing(**timing) for name, timing in found["timings"].items()}
    rule = timings["rule"]
    faster = {name: t.q50 for name, t in timings.items() if name != "clone" and verdict(rule, t) == "faster"}
    best = min(faster, key=faster.__getitem__, default="")
    if not best or rule.q50 < LEAST_GAIN * faster[best]:
        return None
    job = Job(**{**found["job"], "case": Case(**found["job"]["case"])})
    return make_rule(job, Choice(*map(int, best.split("/"))))
