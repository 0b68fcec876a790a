# SPDX-License-Identifier: MIT
"""Launch plans: times every way to cut a sample into blocks that the plan accepts, and the plan's own choice.

Each candidate is checked before it is timed. Three short samples of each select the fastest ones, which are timed again
with the plan's choice and a copy. :func:`rules` turns the result into a table for ECA_CUDA_TUNING.
"""

import functools
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from eca_cuda._ext import _C
from eca_cuda.testing import ECA
from eca_cuda.variants.eca import adaptive_kernel_size

from .cases import DRY, LAYOUTS, Case, Job, mobilenetv2, product, resnet50
from .clock import Cpu
from .correctness import Expected
from .providers import make_layers, make_module
from .results import Check, Results, Row, make_row
from .run import make_call, make_sets
from .timing import Budget, Timing, verdict

LEAST_GAIN = 1.02  # of a rule: among dozens of equal plans one is always fastest by noise
BLOCKS, PARTS, THREADS = (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 4, 8, 16), (128, 256, 512)
FIRST = Budget(warmup=0, sample=2e-4, total=0, min_rounds=3)
LAST = Budget(warmup=0, sample=1e-3, total=0, min_rounds=7)
FINALISTS = 4
VARIANT = "eca plans"  # the column "variant" of these rows; their providers are plans, "own" is the plan's choice
MOST_CALLS = 128  # in a capture: enough for the maps of every layer to fill the L2 cache


class Choice(NamedTuple):
    """The plan that a rule of the tuning table sets, written ``blocks/parts/threads``."""

    blocks: int
    parts: int
    threads: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


TWO_PHASE = Choice(-1, 0, 0)


def jobs(dry: bool = False) -> list[Job]:
    """The jobs to sweep, the most important first."""
    both = functools.partial(product, variants=[VARIANT], phases=("forward", "backward"), providers=("fused", "clone"))
    if dry:
        return both([DRY], dtypes=["float16"])
    small = both([*resnet50(32), *mobilenetv2(256)], dtypes=["float16"])
    return [*both(resnet50(256), dtypes=["float16"], layouts=LAYOUTS), *small, *both(resnet50(256), layouts=LAYOUTS)]


def candidates(layout: str) -> list[Choice]:
    """All choices to try. The plan ignores those that do not fit."""
    parts = PARTS if layout == "channels_last" else (1,)
    cuts = itertools.starmap(Choice, itertools.product(BLOCKS, parts, THREADS))
    return [*(cut for cut in cuts if cut.blocks % cut.parts == 0), TWO_PHASE]


def sweep(job: Job, clock: Cpu) -> list[Row | Check]:
    """Check and capture each candidate under its rule, time all together, then time the fastest again."""
    layers = make_layers(job, ECA, make_module(job, ECA, clock.device))
    sets = make_sets(job, clock, MOST_CALLS)
    expected = Expected.of(job, ECA, layers["fused"].parameters, sets[0])
    own, pool, wrong = taken(job), clock.pool(), []
    with torch.set_grad_enabled(job.differentiates):
        calls = {name: [make_call(job, layer, maps) for maps in sets] for name, layer in layers.items()}

        def check() -> None:
            result: Any = calls["fused"][0]()
            expected.check({"y": result} if job.phase == "forward" else {"grad_x": result[0]})

        check()
        mine = f"own {own}"
        captured = {mine: clock.capture(calls["fused"], pool), "clone": clock.capture(calls["clone"], pool)}
        for choice in candidates(job.layout):
            with following(job, choice):
                if choice == own or taken(job) != choice:
                    continue
                try:
                    check()
                    captured[str(choice)] = clock.capture(calls["fused"], pool)
                except AssertionError as error:
                    wrong.append(Check(f"{job} {choice}", "failed", str(error)))
        tried = {name: timing.q50 for name, timing in clock.time(captured, len(sets), FIRST).items()}
        finalists = sorted(tried.keys() - {mine, "clone"}, key=tried.__getitem__)[:FINALISTS]
        timings = clock.time({name: captured[name] for name in (mine, "clone", *finalists)}, len(sets), LAST)
    # Candidates that were not timed again have one number.
    others = {name: Timing(q50, q50, q50, 1) for name, q50 in tried.items() if name not in timings}
    return [*(make_row(job, name, timing) for name, timing in {**timings, **others}.items()), *wrong]


@contextmanager
def following(job: Job, choice: Choice) -> Iterator[None]:
    """In the body, the plan uses this choice for the maps of ``job``, if it fits."""
    _C.set_tuning([make_rule(job.case, job.phase, job.dtype, job.layout, choice)])
    try:
        yield
    finally:
        _C.set_tuning([])


def taken(job: Job) -> Choice:
    """The plan for ``job`` on this GPU; without a GPU, on an H100."""
    n, c, h, w = job.case.shape
    call = (n, c, h * w, job.dtype, job.layout, "eca", job.phase)
    plan = _C.plan(*call, _C.device() or "h100", kernel_size=adaptive_kernel_size(c))
    if plan["path"] != "one_pass":
        return TWO_PHASE
    return Choice(plan["blocks_per_sample"], plan["position_parts"], plan["threads"])


def make_rule(case: Case, phase: str, dtype: str, layout: str, choice: Choice) -> dict[str, Any]:
    """A rule of the tuning table."""
    kind = "rows" if layout == "channels_last" else "planes"
    what = {"direction": phase, "variant": "eca", "dtype": dtype, "layout": kind}
    return {**what, "c": case.c, "s": case.h * case.w, "n": case.n, **choice._asdict()}


def rules(results: Results) -> list[dict[str, Any]]:
    """The rules of a tuning table: the fastest plan of each job, where it beats the plan's choice beyond noise."""
    by_job: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in results.rows:
        if row.variant == VARIANT and row.rounds > 1:
            by_job.setdefault(row.job, {})[row.provider] = row
    found = []
    for rows in by_job.values():
        own = next(row for name, row in rows.items() if name.startswith("own "))
        faster = [r for r in rows.values() if r.provider != "clone" and verdict(own.timing, r.timing) == "faster"]
        best = min(faster, key=lambda row: row.q50, default=own)
        if own.q50 >= LEAST_GAIN * best.q50:
            choice = Choice(*map(int, best.provider.split("/")))
            found.append(make_rule(Case(best.case, *best.shape), best.phase, best.dtype, best.layout, choice))  # type: ignore[arg-type]
    return found
