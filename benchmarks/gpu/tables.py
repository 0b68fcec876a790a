# SPDX-License-Identifier: MIT
"""Tables of a GPU's results, for docs/gpu.md and for the terminal."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from ..analysis import Goal, Group, groups, mean_speedup, speedup
from ..cases import Case
from ..correctness import has_residual
from ..environment import describe
from ..results import ModelRow, Results, Row
from ..tables import Table, duration, factor, median, percent, table_of_goals
from ..traffic import TRANSFERS
from .ncu import FIGURES
from .providers import PROVIDERS
from .record import DONE

_LARGE = 200e6  # bytes that must move; from there on the bandwidth and not the launch decides
_LABELS = ("layer", "batch", "pass", "dtype", "layout")
_NETWORKS = {
    "plain": "none",
    "eager": "timm's",
    "converted": "converted",
    "residual": "converted, residuals fused",
    "inline": "converted, compiled inline",
}


def limit(results: Results) -> Table:
    """The copies that everything is held against."""
    rates: dict[int, dict[str, float]] = {}
    for row in results.findings.get("limit", ()):
        rates.setdefault(row["map_bytes"], {})[row["name"]] = row["gb_per_s"]
    lines = [
        [f"{size >> 20} MiB", *(f"{by_name[name]:.0f}" for name in ("clone", "negate"))]
        for size, by_name in sorted(rates.items())
    ]
    return Table("Copies, GB/s, bytes read and written", ["map", "clone", "negate"], lines)


def layers(results: Results) -> Table:
    """Every job with torch.compile in it, where the clone and all others are side by side."""
    members = [group for group in _of_ours(results) if "compile" in group]
    return _side_by_side("Layers, graphs replayed", members, ("eager", "compile"))


def other_layers(results: Results) -> Table:
    """The same of all other jobs: more dtypes, layouts, passes and layers, without what takes long to compile."""
    members = [group for group in _of_ours(results) if "compile" not in group]
    return _side_by_side("Other layers, graphs replayed", members, ("eager", "triton"))


def _of_ours(results: Results) -> list[Group]:
    return [group for group in groups(results.rows) if "fused" in group]


def _side_by_side(title: str, members: list[Group], bases: tuple[str, ...]) -> Table:
    """The median times of all providers, and ours held against the clone's and the bases'."""
    names = [name for name in PROVIDERS if name != "two-phase" and any(name in group for group in members)]
    compared = ["of clone", *(f"vs {base}" for base in bases)]
    holders = (*bases, "fused")
    lines = []
    for group in members:
        fused = group["fused"]
        lines.append(
            [
                *_labels(fused),
                *(median(group, name) for name in names),
                percent(fused.share_of_clone),
                *(factor(speedup(group, base)) for base in bases),
                " / ".join(_peak(group.get(name)) for name in holders),
            ]
        )
    columns = [*_LABELS, *names, *compared, f"peak MB: {' / '.join(holders)}"]
    return Table(title, columns, lines, labels=len(_LABELS))


def two_phase(results: Results) -> Table:
    """What the one-pass kernels gain over their substitute, which was timed by a process of its own."""
    lines = [
        [
            *_labels(group["fused"]),
            *(median(group, name) for name in ("fused", "two-phase")),
            factor(speedup(group, "two-phase")),
        ]
        for group in _of_ours(results)
        if "two-phase" in group
    ]
    columns = [*_LABELS, "one pass", "two-phase", "gain"]
    return Table("One-pass kernels and their substitute", columns, lines, labels=len(_LABELS))


def shares(results: Results) -> Table:
    """The rate of ours as a share of a same-size copy's, everywhere it was measured."""
    settings = list(dict.fromkeys((row.dtype, row.layout) for row in results.rows))
    found: dict[tuple[Case, str], dict[tuple[str, str], float | None]] = {}
    for row in results.rows:
        if row.provider == "fused":
            found.setdefault((row.case, row.phase), {})[row.dtype, row.layout] = row.share_of_clone
    lines = [
        [layer_of(case), str(case.n), phase, *(percent(by_setting.get(setting)) for setting in settings)]
        for (case, phase), by_setting in found.items()
    ]
    columns = ["layer", "batch", "pass", *(" ".join(setting) for setting in settings)]
    return Table("Ours, of the rate of a copy", columns, lines, labels=3)


def launches(results: Results) -> Table:
    """What a call costs where the work is small: replayed, launched from Python, and Python and the driver alone."""
    lines = []
    for group in groups(row for row in results.rows if row.case.n == 1):
        for name in ("eager", "compile", "fused"):
            row = group.get(name)
            if row and row.gpu:
                times = (row.timing.q50, row.gpu.launched.q50, row.gpu.host)
                lines.append([*_labels(row), name, *map(duration, times), f"{_peak(row)} MB"])
    columns = [*_LABELS, "provider", "replayed", "launched", "host", "peak memory"]
    return Table("Calls at batch 1", columns, lines, labels=len(_LABELS) + 1)


def cost(rows: dict[str, ModelRow], name: str) -> float | None:
    """The time that attention adds to a network in one setting, as a share of the network without it."""
    if name not in rows or "plain" not in rows:
        return None
    return rows[name].timing.q50 / rows["plain"].timing.q50 - 1


def by_setting(models: Iterable[ModelRow]) -> dict[tuple[Any, ...], dict[str, ModelRow]]:
    """The networks that were timed against each other, by name."""
    found: dict[tuple[Any, ...], dict[str, ModelRow]] = {}
    for row in models:
        setting = (row.phase, row.batch, row.dtype, row.layout, row.compiled)
        found.setdefault(setting, {})[row.name] = row
    return found


def networks(results: Results) -> Table:
    """Whole networks: what attention adds to a ResNet-50-D."""
    lines = []
    for (phase, batch, dtype, layout, compiled), rows in by_setting(results.models).items():
        for name, row in rows.items():
            added = cost(rows, name) if name != "plain" else None
            lines.append(
                [
                    phase,
                    str(batch),
                    f"{dtype} {layout}",
                    "compiled" if compiled else "eager",
                    _NETWORKS[name],
                    f"{batch / row.timing.q50:.0f}",
                    "" if added is None else f"{added:+.1%}",
                    f"{row.peak_bytes / 1e6:.0f}",
                ]
            )
    columns = ["pass", "batch", "format", "how", "attention", "images/s", "cost", "peak MB"]
    return Table("Whole networks", columns, lines, labels=5)


def goals(results: Results) -> list[Goal]:
    """The goals for a GPU, on what the run covers."""
    ours = [row for row in results.rows if row.provider == "fused" and row.bytes >= _LARGE]

    def least(phase: str) -> float | None:
        values = [row.share_of_clone for row in ours if row.phase == phase and row.share_of_clone is not None]
        return min(values, default=None)

    def faster(phase: str) -> float | None:
        large = [row for row in results.rows if row.phase == phase and row.bytes >= _LARGE]
        return mean_speedup(groups(large), "compile")

    costs = [cost(rows, "residual") for setting, rows in by_setting(results.models).items() if setting[-1]]
    measured = [value for value in costs if value is not None]
    return [
        Goal("forward, least share of a copy's rate from 200 MB on", 0.92, least("forward"), unit=""),
        Goal("backward, least share of a copy's rate from 200 MB on", 0.88, least("backward"), unit=""),
        Goal("forward, times faster than compile from 200 MB on", 1.4, faster("forward")),
        Goal("training, times faster than compile from 200 MB on", 1.3, faster("training")),
        Goal("compiled network, most that attention adds", 0.02, max(measured, default=None), at_least=False, unit=""),
    ]


def sweep(results: Results) -> Table:
    """The plan's choice for each layer, the best of what else was tried, and what that would gain."""
    lines = []
    for found in results.findings.get("sweep", ()):
        seconds = {name: timing["q50"] for name, timing in found["timings"].items()}
        copied, rule, job = seconds.pop("clone"), seconds.pop("rule"), found["job"]
        best = sorted(seconds, key=seconds.__getitem__)[:3]
        at_copy_rate = copied * TRANSFERS[job["phase"]] / TRANSFERS["clone"]

        def cell(name: str, time: float, limit: float = at_copy_rate) -> str:
            return f"{'two-phase' if name.startswith('-1') else name} {limit / time:.0%}"

        lines.append(
            [
                *(layer_of(Case(**job["case"])), str(job["case"]["n"]), job["phase"], job["dtype"], job["layout"]),
                cell(found["own"], rule),
                *(cell(name, seconds[name]) for name in best),
                *("" for _ in range(3 - len(best))),
                factor(rule / seconds[best[0]] if best else None),
                str(len(found["wrong"])),
            ]
        )
    columns = [*_LABELS, "the plan", "best", "second", "third", "the plan / best", "wrong"]
    return Table("Launch plans: blocks/parts/threads, of the rate of a copy", columns, lines, labels=len(_LABELS))


def checks(results: Results) -> Table:
    """What became of every command, and of units that failed."""
    lines = [
        [unit["step"], unit["unit"], unit["status"], f"{unit['seconds']:.0f} s", _last_line(unit["note"])]
        for unit in results.findings.get("units", ())
        if unit["note"] or unit["status"] != DONE
    ]
    return Table("Steps", ["step", "command or unit", "status", "time", "last words"], lines, labels=3)


def refusals(results: Results) -> Table:
    """Providers that could not do a job, and what they said."""
    jobs: dict[tuple[str, str], list[str]] = {}
    for refused in results.findings.get("refused", ()):
        jobs.setdefault((refused["provider"], refused["reason"]), []).append(refused["job"])
    lines = [[name, _cell(reason), of[0], str(len(of))] for (name, reason), of in jobs.items()]
    return Table("Providers that could not do a job", ["provider", "first line", "first job", "jobs"], lines, labels=3)


def profiled(results: Results) -> Table:
    """What ncu says of single launches, in its own words and units."""
    lines = [
        [row["call"], _cell(row["kernel"]), *(row["figures"].get(name, "") for name in FIGURES)]
        for row in results.findings.get("profiled", ())
    ]
    return Table("Kernels under ncu", ["call", "kernel", *FIGURES], lines, labels=2)


def rotation(results: Results) -> str:
    """How far the maps that calls use in turn exceed the L2 cache, at least."""
    cache = results.environment["gpu"].get("l2_bytes")
    rotated = [row.gpu.rotated_bytes for row in results.rows if row.gpu]
    if not cache or not rotated:
        return "How much calls used in turn was not recorded"
    return f"Calls used maps in turn of at least {min(rotated) / cache:.1f} times the bytes of the L2 cache"


def state(results: Results) -> str:
    """Clocks and temperature over the run."""
    found = [moment for row in results.findings.get("states", ()) for moment in (row.get("before"), row["after"])]
    moments = [moment for moment in found if moment]
    parts = []
    for key, unit in (("clocks.sm", "MHz"), ("clocks.mem", "MHz"), ("temperature.gpu", "degrees"), ("power.draw", "W")):
        values = [float(m[key]) for m in moments if str(m.get(key, "")).replace(".", "", 1).isdigit()]
        if values:
            parts.append(f"{key} {min(values):.0f} to {max(values):.0f} {unit}, median {statistics.median(values):.0f}")
    return "; ".join(parts) or "Clocks and temperature were not recorded."


def layer_of(case: Case) -> str:
    """``"resnet50 layer1, 256 x 56 x 56"``."""
    network, layer, _ = case.name.split(".")
    return f"{network} {layer}, {case.c} x {case.h} x {case.w}"


GPU_TABLES: dict[str, Callable[[Results], str]] = {
    "gpu-environment": lambda results: f"{describe(results.environment)}. {rotation(results)}. {state(results)}",
    "gpu-goals": lambda results: table_of_goals("Goals", goals(results)).markdown(),
    "gpu-limit": lambda results: limit(results).markdown(),
    "gpu-layers": lambda results: layers(results).markdown(),
    "gpu-other-layers": lambda results: other_layers(results).markdown(),
    "gpu-two-phase": lambda results: two_phase(results).markdown(),
    "gpu-shares": lambda results: shares(results).markdown(),
    "gpu-launches": lambda results: launches(results).markdown(),
    "gpu-networks": lambda results: networks(results).markdown(),
    "gpu-sweep": lambda results: sweep(results).markdown(),
    "gpu-profiled": lambda results: profiled(results).markdown(),
    "gpu-refusals": lambda results: refusals(results).markdown(),
    "gpu-checks": lambda results: checks(results).markdown(),
}


def _labels(row: Row) -> list[str]:
    name = row.phase.removeprefix("residual_") + (" + residual, relu" if has_residual(row.phase) else "")
    return [layer_of(row.case), str(row.case.n), name, row.dtype, row.layout]


def _peak(row: Row | None) -> str:
    return f"{row.gpu.peak_bytes / 1e6:.1f}" if row and row.gpu else "-"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return _cell(lines[-1]) if lines else ""


def _cell(text: str) -> str:
    return text.replace("|", "/")[:160]
