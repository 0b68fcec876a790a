# SPDX-License-Identifier: MIT
"""Layers on a GPU: for each job check ours, then time all providers against each other, replayed and launched."""

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
import torch._functorch.config

from eca_cuda.testing import ECA

from .. import correctness
from ..cases import Case, mobilenetv2, resnet50
from ..correctness import differentiates
from ..plan import LAYOUTS, Job, product
from ..results import GpuFacts, Row, make_rows
from ..run import make_call, make_sets
from ..timing import Call
from .machine import Machine, host_seconds, launched, maps_in_turn, replayed
from .providers import OURS, PROVIDERS, make_layers, make_module
from .record import Found
from .session import Session

DTYPES = ("float16", "float32", "bfloat16")
BATCHES = (256, 32, 1)
_ALL = tuple(name for name in PROVIDERS if name != "two-phase")
# Max-autotune takes tens of seconds a case, and torch.compile seconds.
_COMPILED = tuple(name for name in _ALL if not name.startswith("autotune"))
_QUICK = ("eager", "triton", "fused", "clone")
DRY_CASE = Case("resnet50.layer4.n2", 2, 16, 7, 8)


def jobs(dry: bool = False) -> list[Job]:
    """What is measured, the most valuable first; the time decides how far a run comes."""
    if dry:
        phases = ("forward", "training", "residual_training", "backward")
        return product([DRY_CASE], phases=phases, dtypes=["float16"], providers=("eager", "timm", "fused", "clone"))
    half = {"dtypes": ["float16"]}
    residual = ("residual_forward", "residual_training")
    both = ("forward", "training")
    wanted = [
        *product(resnet50(256), phases=["forward"], providers=_ALL, **half),
        *product(resnet50(256), phases=["training"], providers=_COMPILED, **half),
        *product(resnet50(32), phases=both, providers=_COMPILED, **half),
        *product(resnet50(256), phases=["backward"], providers=_QUICK, **half),
        *product(resnet50(256), phases=both, dtypes=DTYPES, layouts=LAYOUTS, providers=_QUICK),
        *product(resnet50(1), phases=both, providers=_COMPILED, **half),
        *product(
            resnet50(256), phases=residual, layouts=LAYOUTS, providers=("eager", "compile", "fused", "clone"), **half
        ),
        *product(mobilenetv2(256), phases=both, layouts=LAYOUTS, providers=_QUICK, **half),
        *product(mobilenetv2(256), phases=both, providers=_COMPILED, **half),
    ]
    for batch in BATCHES:
        cases = [*resnet50(batch), *mobilenetv2(batch)]
        every = ("forward", "training", *residual, "backward", "residual_backward")
        wanted += product(cases, phases=every, dtypes=DTYPES, layouts=LAYOUTS, providers=_QUICK)
    return _first_of_each(wanted)


def measure(session: Session) -> int:
    """The step ``kernels``."""
    return session.each(jobs(session.machine.dry), lambda job: run_job(job, session.machine))


def measure_two_phase(session: Session) -> int:
    """The step ``two-phase``: its process forbids the one-pass kernels, and only their substitute's rows are kept."""

    def work(job: Job) -> Found:
        found = dict(run_job(job, session.machine))
        found["rows"] = [row for row in found["rows"] if row["provider"] != "clone"]
        return found

    cases = [DRY_CASE] if session.machine.dry else [*resnet50(256), *resnet50(1)]
    chosen = {"phases": ["forward", "training"], "dtypes": ["float16", "float32"]}
    return session.each(product(cases, **chosen, providers=("two-phase", "clone")), work)


def run_job(job: Job, machine: Machine) -> Found:
    """The rows of one job, the state of the device, and which providers could not do it and why: ours always can."""
    torch.manual_seed(0)
    module = make_module(job, machine.device)
    correctness.check(job, ECA, module, machine.device)
    layers = make_layers(job, module, job.providers)
    itemsize = getattr(torch, job.dtype).itemsize
    map_bytes = job.case.elements * itemsize
    sets = make_sets(job, machine.device, maps_in_turn(machine, map_bytes))
    for name in layers.keys() & OURS:
        correctness.check_batch(job, ECA, layers[name], sets[0])
    calls: dict[str, list[Call]] = {}
    refused: list[dict[str, Any]] = []
    # A backward pass that is repeated may not reuse the memory of what it reads.
    patch = torch._functorch.config.patch(donated_buffer=False)
    with patch, torch.set_grad_enabled(differentiates(job.phase)):
        for name, layer in layers.items():
            try:
                of_sets = [make_call(layer, job.phase, maps) for maps in sets]
                machine.replay(of_sets[:1])()
                machine.wait()
                calls[name] = of_sets
            except Exception as error:
                if name in OURS or not machine.is_usable():
                    raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                whole = traceback.format_exc(limit=-3)
                refused.append({"job": str(job), "provider": name, "reason": reason, "error": whole})
        before = machine.state()
        replays = replayed(machine, calls)
        launches = launched(machine, calls)
        facts = {
            name: GpuFacts(
                launched=launches[name],
                host=host_seconds(machine, of),
                peak_bytes=machine.peak_bytes(of[0]),
                rotated_bytes=len(sets) * map_bytes,
            )
            for name, of in calls.items()
        }
    rows = make_rows(job, itemsize, replays)
    state = {"job": str(job), "before": before, "after": machine.state(), "sets": len(sets)}
    return {"rows": as_dicts(rows, facts), "states": [state], "refused": refused}


def as_dicts(rows: Iterable[Row], facts: Mapping[str, GpuFacts]) -> list[dict[str, Any]]:
    """The rows with what only a GPU knows of each, for JSON."""
    return [asdict(replace(row, gpu=facts[row.provider])) for row in rows]


def _first_of_each(wanted: Iterable[Job]) -> list[Job]:
    """Without those that an earlier one, with more providers, has measured already."""
    first: dict[str, Job] = {}
    for job in wanted:
        first.setdefault(str(job), job)
    return list(first.values())
