# SPDX-License-Identifier: MIT
"""What the launch plan predicts for the layers of ResNet-50 and MobileNetV2 on GPUs: not measured, but what will be.

``python -m benchmarks predictions`` writes ``predictions.json`` beside this file, which has every case, and the tables
of ``docs/predictions.md``.
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from eca_cuda.plan_report import collect

from .cases import Case, mobilenetv2, resnet50
from .plan import LAYOUTS
from .tables import Table

FILE = Path(__file__).parent / "predictions.json"
PAGE = Path(__file__).parent.parent / "docs/predictions.md"
MARKER = "<!-- from here on: python -m benchmarks predictions -->\n"

DEVICES = ("h100", "h200")
BATCHES = (1, 32, 256)
DTYPES = ("float32", "float16", "bfloat16")
CASES = tuple(case for batch in BATCHES for case in resnet50(batch) + mobilenetv2(batch))
DIRECTIONS, VARIANTS = ("forward", "backward"), ("multi_kernel_eca", "bidirectional_eca")
OF_ECA: dict[str, dict[str, Any]] = {
    "forward": {"direction": "forward"},
    "backward": {"direction": "backward"},
    "forward, residual and relu": {"direction": "forward", "residual": True, "relu": True},
    "backward, residual and relu": {"direction": "backward", "residual": True, "relu": True},
}
OF_VARIANTS: dict[str, dict[str, Any]] = {
    f"{direction}, {variant}": {"direction": direction, "variant": variant}
    for variant, direction in itertools.product(VARIANTS, DIRECTIONS)
}
WORKS = OF_ECA | OF_VARIANTS

# The goals are about calls that move at least so many bytes: the least share of the copy rate, by direction.
LARGE = 200_000_000
GOALS = {"forward": 0.92, "backward": 0.88}

# Bytes/s that the plan's model lets one multiprocessor move (kRatePerMultiprocessor in csrc/plan/resident.cpp).
RATE_PER_MULTIPROCESSOR = 65e9


@dataclass(frozen=True)
class Prediction:
    """One call of ECA. ``us`` is predicted; ``floor_us`` is what its bytes take at the device's copy rate; ``gap`` says
    in words what lies between them."""

    device: str
    case: str
    dtype: str
    layout: str
    work: str
    plan: str
    floor_bytes: int
    floor_us: float
    us: float
    gap: str

    @property
    def share(self) -> float:
        return self.floor_us / self.us

    @property
    def goal(self) -> float | None:
        """The least share that is wanted, where one is."""
        return GOALS[self.work.split(",")[0]] if self.floor_bytes >= LARGE else None


def predict(device: str, case: Case, dtype: str, layout: str, work: str) -> Prediction:
    """What the built plan says of one call."""
    facts = collect(case.shape, dtype, layout=layout, device=device, **WORKS[work])
    plan = facts["plan"]
    resident = plan["resident"]
    chosen = resident if resident["possible"] else plan
    if resident["possible"]:
        words = f"{resident['clusters']} clusters of {resident['ranks']} blocks"
        words += f", {resident['stages']} x {resident['slab_bytes'] / 1024:.0f} KB"
        gap = gap_of(resident, case.n, facts["device"], _latency(device, dtype, work), work in OF_VARIANTS)
    else:
        words, gap = f"two-phase, {plan['blocks']} blocks", f"reads twice: {resident['reason']}"
    floor, us = round(chosen["floor_us"], 2), round(chosen["predicted_us"], 2)
    return Prediction(device, case.name, dtype, layout, work, words, plan["floor_bytes"], floor, us, gap)


@cache
def _latency(device: str, dtype: str, work: str) -> float:
    """Microseconds of a call that has nearly nothing to move."""
    resident = collect((1, 64, 1, 1), dtype, device=device, **WORKS[work])["plan"]["resident"]
    return float(resident["predicted_us"] - resident["floor_us"])


def gap_of(resident: dict[str, Any], n: int, device: dict[str, Any], latency: float, has_weights: bool = False) -> str:
    """What keeps a resident plan from the copy rate: latency, and what the rest of the gap may be."""
    ranks, clusters = resident["ranks"], resident["clusters"]
    rounds, last = -(-n // clusters), n % clusters
    one_slab = "" if resident["stages"] > 1 else " with one slab"  # nothing is loaded while the gate is computed

    def too_few(blocks: int) -> bool:
        return blocks * RATE_PER_MULTIPROCESSOR < device["copy_rate"]

    causes = {
        f"{clusters * ranks} of {device['multiprocessors']} multiprocessors busy": too_few(clusters * ranks),
        "exchange in clusters": ranks > 1,
        f"{rounds} rounds{one_slab}": rounds > 1,
        f"the gate's weights per {'cluster' if resident['kept_rows'] else 'sample'}": has_weights,
        f"{last * ranks} multiprocessors busy in the last": rounds > 1 and last > 0 and too_few(last * ranks),
    }
    rest = resident["predicted_us"] - resident["floor_us"] - latency
    named = ", ".join(cause for cause, applies in causes.items() if applies)
    return f"{latency:.1f} us latency" + (f"; {rest:.1f} us: {named}" if round(rest, 1) > 0 else "")


def all_predictions() -> list[Prediction]:
    """Every case, in a fixed order."""
    return [predict(*call) for call in itertools.product(DEVICES, CASES, DTYPES, LAYOUTS, WORKS)]


def to_json(found: Iterable[Prediction]) -> str:
    """A line per prediction; what they are, in the first lines."""
    names = json.dumps([field.name for field in fields(Prediction)])
    rows = ",\n".join(json.dumps(astuple(prediction)) for prediction in found)
    return f'{{"note": "predictions of the launch plan, not measured",\n"columns": {names},\n"rows": [\n{rows}\n]}}\n'


def to_markdown(found: Sequence[Prediction]) -> str:
    """What ``docs/predictions.md`` shows, from its marker on."""
    parts = [MARKER]
    for device in DEVICES:
        here = [p for p in found if p.device == device]
        parts.append(f"## {device.upper()}, predicted\n\n{_goals([p for p in here if p.work in OF_ECA])}\n")
        for variant in VARIANTS:
            parts.append(f"{variant}: {_goals([p for p in here if p.work.endswith(variant)])}\n")
        for work in OF_ECA:
            chosen = {(p.case, p.dtype, p.layout): p for p in found if (p.device, p.work) == (device, work)}
            parts.append(f"### {device.upper()}: {work}\n\n{_times(chosen).markdown()}\n")
    wanted = [
        p for p in found if (p.device, p.layout, p.dtype) == ("h100", "contiguous", "float16") and "," not in p.work
    ]
    parts.append(f"## Plans and gaps\n\nOn the H100, for contiguous float16 maps:\n\n{_plans(wanted).markdown()}\n")
    plans = [
        p
        for p in found
        if (p.device, p.layout, p.dtype) == ("h100", "channels_last", "float16") and p.work.endswith(VARIANTS[1])
    ]
    parts.append(f"The bidirectional gate on the H100, for channels_last float16 maps:\n\n{_plans(plans).markdown()}\n")
    return "\n".join(parts)


def _goals(found: Iterable[Prediction]) -> str:
    large = [p for p in found if p.goal]
    reach = sum(p.share >= p.goal for p in large if p.goal)
    worst = min(large, key=lambda p: p.share)
    return (
        f"Of {len(large)} calls that move at least {LARGE // 10**6} MB, {reach} are predicted to reach their goal. "
        f"The lowest share is {worst.share:.0%}: {worst.case}, {worst.dtype}, {worst.layout}, {worst.work}."
    )


def _times(found: dict[tuple[str, str, str], Prediction]) -> Table:
    settings = list(itertools.product(DTYPES, LAYOUTS))
    columns = ["case, us (share of the copy rate)", *(f"{dtype}, {layout}" for dtype, layout in settings)]
    rows = []
    for case in CASES:
        here = [found[case.name, dtype, layout] for dtype, layout in settings]
        rows.append([case.name, *(f"{p.us:.1f} ({p.share:.0%})" for p in here)])
    return Table("", columns, rows)


def _plans(found: Iterable[Prediction]) -> Table:
    columns = ["case", "work", "plan", "floor, us", "predicted, us", "gap"]
    return Table("", columns, [[p.case, p.work, p.plan, f"{p.floor_us:.1f}", f"{p.us:.1f}", p.gap] for p in found])


def write() -> None:
    """Both files."""
    found = all_predictions()
    FILE.write_text(to_json(found))
    PAGE.write_text(PAGE.read_text().split(MARKER)[0] + to_markdown(found))
