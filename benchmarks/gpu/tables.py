# SPDX-License-Identifier: MIT
"""Tables of a GPU's results, for docs/gpu.md and for the terminal."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from ..analysis import Goal, anyone, groups, mean_speedup, speedup
from ..cases import Case
from ..correctness import has_residual
from ..environment import describe
from ..results import ModelRow, Results, Row
from ..tables import Table, duration, factor, median, percent, table_of_goals
from ..timing import Timing
from .providers import PROVIDERS
from .record import DONE

_LARGE = 200e6  # bytes that must move; from there on the bandwidth and not the launch decides
_NETWORKS = ("eager", "converted", "residual", "inline")


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
    """Every job of ResNet-50 with torch.compile in it, where the clone, the plan and all others are side by side."""
    members = [g for g in groups(results.rows) if "compile" in g and "fused" in g]
    names = [name for name in PROVIDERS if any(name in group for group in members)]
    columns = ["layer", "batch", "pass", "dtype", "layout", *names, "of clone", "vs compile", "planned"]
    lines = []
    for group in members:
        row, fused = anyone(group), group["fused"]
        planned = fused.gpu.predicted if fused.gpu else None
        lines.append(
            [
                *_labels(row),
                *(median(group, name) for name in names),
                percent(fused.share_of_clone),
                factor(speedup(group, "compile")),
                duration(planned) if planned else "",
            ]
        )
    return Table("Layers, graphs replayed", columns, lines, labels=5)


def shares(results: Results) -> Table:
    """The rate of ours as a share of a same-size copy's, everywhere it was measured."""
    settings = list(dict.fromkeys((row.dtype, row.layout) for row in results.rows))
    found: dict[tuple[Case, str], dict[tuple[str, str], float | None]] = {}
    for row in results.rows:
        if row.provider == "fused":
            found.setdefault((row.case, row.phase), {})[row.dtype, row.layout] = row.share_of_clone
    lines = [
        [_layer(case), str(case.n), phase, *(percent(by_setting.get(setting)) for setting in settings)]
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
                peak = f"{row.gpu.peak_bytes / 1e6:.1f} MB"
                lines.append([*_labels(row), name, *map(duration, times), peak])
    columns = ["layer", "batch", "pass", "dtype", "layout", "provider", "replayed", "launched", "host", "peak memory"]
    return Table("Calls at batch 1", columns, lines, labels=6)


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
        plain = rows["plain"]
        costs = [cost(rows, name) for name in _NETWORKS]
        peaks = [f"{rows[name].peak_bytes / 1e6:.0f}" for name in ("plain", "eager", "residual")]
        lines.append(
            [
                phase,
                str(batch),
                f"{dtype} {layout}",
                "compiled" if compiled else "eager",
                f"{batch / plain.timing.q50:.0f}",
                *("" if value is None else f"{value:+.1%}" for value in costs),
                " / ".join(peaks),
            ]
        )
    columns = ["pass", "batch", "format", "how", "images/s without", *(f"cost, {name}" for name in _NETWORKS)]
    columns.append("peak MB: without / eager / residual")
    return Table("Whole networks", columns, lines, labels=4)


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


def explored(results: Results) -> Table:
    """What was asked of the launch plan, what was predicted, and what came out."""
    lines = []
    for tried in results.findings.get("candidates", ()):
        times = {name: Timing(**timing).q50 for name, timing in tried["timings"].items()}
        copied, planned = times.pop("clone"), times["plan"]
        best = min(times, key=lambda name: times[name])
        job = tried["job"]
        what = f"{tried['question']}: {job['case']['name']} {job['phase']} {job['dtype']} {job['layout']}"
        others = "; ".join(f"{name}: {duration(seconds)}" for name, seconds in times.items() if name != "plan")
        lines.append(
            [
                what,
                tried["predicted"],
                duration(planned),
                factor(planned / copied),
                best,
                factor(planned / times[best]),
                others,
                str(len(tried["wrong"])),
            ]
        )
    columns = ["question", "predicted", "the plan", "of a copy's time", "best", "gain", "all", "wrong"]
    return Table("Ranks, stages, threads of the resident kernels", columns, lines, labels=2)


def clusters(results: Results) -> Table:
    """Clusters that the driver says run at once."""
    lines = [
        [str(row["ranks"]), f"{row['shared_kb']} KB", str(row["threads"]), str(row["clusters"])]
        for row in results.findings.get("clusters", ())
    ]
    return Table("Clusters at once", ["blocks", "shared memory of each", "threads", "clusters"], lines)


def checks(results: Results) -> Table:
    """What became of every command, and of units that failed."""
    lines = [
        [unit["step"], unit["unit"], unit["status"], f"{unit['seconds']:.0f} s", _last_line(unit["note"])]
        for unit in results.findings.get("units", ())
        if unit["note"] or unit["status"] != DONE
    ]
    return Table("Steps", ["step", "command or unit", "status", "time", "last words"], lines, labels=3)


def headline(results: Results) -> str:
    """One sentence for README."""
    promised = {goal.what: goal.measured for goal in goals(results)}
    shown = [f"{what}: {value:.2f}" for what, value in promised.items() if value is not None]
    sentence = "; ".join(shown) if shown else "nothing that a goal speaks of was measured"
    return f"{describe(results.environment)}: {sentence}."


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


GPU_TABLES: dict[str, Callable[[Results], str]] = {
    "gpu-environment": lambda results: f"{describe(results.environment)}. {state(results)}",
    "gpu-headline": headline,
    "gpu-goals": lambda results: table_of_goals("Goals", goals(results)).markdown(),
    "gpu-limit": lambda results: limit(results).markdown(),
    "gpu-layers": lambda results: layers(results).markdown(),
    "gpu-shares": lambda results: shares(results).markdown(),
    "gpu-launches": lambda results: launches(results).markdown(),
    "gpu-networks": lambda results: networks(results).markdown(),
    "gpu-clusters": lambda results: clusters(results).markdown(),
    "gpu-explored": lambda results: explored(results).markdown(),
    "gpu-checks": lambda results: checks(results).markdown(),
}


def _layer(case: Case) -> str:
    network, layer, _ = case.name.split(".")
    return f"{network} {layer}, {case.c} x {case.h} x {case.w}"


def _labels(row: Row) -> list[str]:
    name = row.phase.removeprefix("residual_") + (" + residual, relu" if has_residual(row.phase) else "")
    return [_layer(row.case), str(row.case.n), name, row.dtype, row.layout]


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].replace("|", "/")[:160] if lines else ""
