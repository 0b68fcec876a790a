# SPDX-License-Identifier: MIT
"""Tables made from rows: the same ones for the terminal and for the README (Markdown)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .analysis import Goal, Group, anyone, goals, groups, headline, is_slower, mean_speedup, speedup
from .cases import TINY
from .environment import describe
from .plan import PHASES
from .providers import PROVIDERS
from .results import ModelRow, Results, Row
from .timing import verdict


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; the first ``labels`` columns are aligned left, the others right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: int = 1

    def markdown(self) -> str:
        """The table in GitHub's Markdown, without its title."""
        rule = [":--" if i < self.labels else "--:" for i in range(len(self.columns))]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows))


def full(rows: Iterable[Row]) -> list[Table]:
    """Everything measured, one line per job; one table per variant, dtype and layout."""
    by_setting: dict[str, list[Group]] = {}
    for group in groups(rows):
        row = anyone(group)
        by_setting.setdefault(f"{row.variant} {row.dtype} {row.layout}", []).append(group)
    return [_full(setting, members) for setting, members in by_setting.items()]


def _full(title: str, members: list[Group]) -> Table:
    providers = [name for name in PROVIDERS if any(name in group for group in members)]
    columns = ["case", "pass", *providers, "GB/s", "of clone", "vs eager", "vs compile"]
    lines = []
    for group in members:
        row, fused = anyone(group), group.get("fused")
        lines.append(
            [
                row.case.name,
                row.phase,
                *(median(group, name) for name in providers),
                f"{fused.gb_per_s:.1f}" if fused else "",
                percent(fused.share_of_clone if fused else None),
                factor(speedup(group, "eager")) + (" (slower)" if is_slower(group) else ""),
                factor(speedup(group, "compile")),
            ]
        )
    return Table(f"{title}: median times; the last four columns are about fused", columns, lines, labels=2)


def goal_table(results: Results) -> Table:
    """The goals for a CPU and what this run says about them."""
    title = "Goals; speed-ups are geometric means over ResNet-50's layers and batch sizes"
    return table_of_goals(title, goals(results.rows))


def table_of_goals(title: str, promised: Iterable[Goal]) -> Table:
    """Goals next to what was measured."""
    answers = {True: "yes", False: "no", None: ""}
    lines = [
        [
            goal.what,
            f"{'>=' if goal.at_least else '<='} {goal.target:g}{goal.unit}",
            "not measured" if goal.measured is None else f"{_plain(goal.measured)}{goal.unit}",
            answers[goal.met],
        ]
        for goal in promised
    ]
    return Table(title, ["goal", "target", "measured", "met"], lines)


def layers(results: Results, phase: str) -> Table:
    """The headline of one phase, layer by layer."""
    providers = ("eager", "compile", "fused")
    lines = []
    for group in headline(results.rows, phase):
        case = anyone(group).case
        lines.append(
            [
                f"{case.name.split('.')[1]}, {case.c} x {case.h} x {case.w}",
                str(case.n),
                *(median(group, name) for name in providers),
                factor(speedup(group, "eager")),
                factor(speedup(group, "compile")),
                percent(group["fused"].share_of_clone if "fused" in group else None),
            ]
        )
    columns = ["layer", "batch", *providers, "vs eager", "vs compile", "of clone"]
    return Table(f"ResNet-50, {phase}", columns, lines)


def overview(results: Results) -> Table:
    """One line per model, variant, dtype and layout: geometric means of the speed-up over eager."""
    by_setting: dict[tuple[str, ...], dict[str, list[Group]]] = {}
    for group in groups(results.rows):
        row = anyone(group)
        setting = (row.case.name.split(".")[0], row.variant, row.dtype, row.layout)
        by_setting.setdefault(setting, {}).setdefault(row.phase, []).append(group)
    lines = [
        [*setting, *(factor(mean_speedup(by_phase.get(phase, ()), "eager")) for phase in PHASES)]
        for setting, by_phase in by_setting.items()
    ]
    columns = ["model", "variant", "dtype", "layout", *(f"{phase} vs eager" for phase in PHASES)]
    return Table("Everything, as geometric means", columns, lines, labels=4)


def overhead(results: Results) -> Table:
    """What one call costs where there is nothing to compute."""
    tiny = groups(row for row in results.rows if row.case == TINY)
    lines = [
        [anyone(group).variant, anyone(group).phase, *(median(group, name) for name in ("eager", "fused", "function"))]
        for group in tiny
    ]
    return Table(f"One call on {list(TINY.shape)}", ["variant", "pass", "eager", "module", "function"], lines, labels=2)


_MODELS = {
    "plain": "ResNet-50",
    "se": "with SE",
    "eager": "with ECA, eager",
    "converted": "with ECA, `convert(model)`",
    "residual": "with ECA, `convert(model, fuse_residual=True)`",
}


def attention_cost(results: Results, name: str, phase: str) -> float:
    """The time that the attention of a network adds, as a share of the network without it."""
    times = {row.name: row.timing.q50 for row in results.models if row.phase == phase}
    return times[name] / times["plain"] - 1


def models(results: Results) -> Table:
    """Whole networks (models.py)."""
    by_name: dict[str, dict[str, ModelRow]] = {}
    for row in results.models:
        by_name.setdefault(row.name, {})[row.phase] = row
    lines = []
    for name, by_phase in by_name.items():
        forward, training = by_phase["forward"], by_phase["training"]
        cost = {phase: f"{attention_cost(results, name, phase):+.1%}" if name != "plain" else "" for phase in PHASES}
        spread = (training.timing.q80 - training.timing.q20) / training.timing.q50
        lines.append(
            [
                _MODELS[name],
                f"{forward.batch / forward.timing.q50:.1f}",
                cost["forward"],
                duration(training.timing.q50),
                cost["training"],
                f"{spread:.0%}",
                f"{training.peak_bytes / 1e6:.0f} MB",
            ]
        )
    columns = ["network", "images/s", "cost", "training step", "cost", "spread", "peak memory"]
    return Table("Whole networks", columns, lines)


def headline_sentence(results: Results) -> str:
    """What ECA costs a network before and after conversion."""
    if not results.models:
        return "No network was measured."
    first = results.models[0]
    forward, training = (
        [f"{attention_cost(results, name, phase):+.1%}" for name in ("eager", "converted", "residual")]
        for phase in ("forward", "training")
    )
    timing = {(row.name, row.phase): row.timing for row in results.models}
    changes = {verdict(timing["eager", phase], timing["residual", phase]) for phase in PHASES}
    return (
        f"ECA adds {forward[0]} to the inference time of a ResNet-50 in eager mode, {forward[1]} after "
        f"`convert(model)` and {forward[2]} with `fuse_residual=True`; to a training step {training[0]}, "
        f"{training[1]} and {training[2]} (batch {first.batch}, {first.side} x {first.side}, medians"
        + ("; on this machine single calls vary by more than that)." if "" in changes else ").")
    )


README_TABLES: dict[str, Callable[[Results], str]] = {
    "environment": lambda results: describe(results.environment),
    "goals": lambda results: goal_table(results).markdown(),
    "forward": lambda results: layers(results, "forward").markdown(),
    "training": lambda results: layers(results, "training").markdown(),
    "overview": lambda results: overview(results).markdown(),
    "models": lambda results: models(results).markdown(),
    "headline": headline_sentence,
    "overhead": lambda results: overhead(results).markdown(),
}


def median(group: Group, provider: str) -> str:
    """The median time of a provider; empty if it was not measured."""
    return duration(group[provider].timing.q50) if provider in group else ""


def duration(seconds: float) -> str:
    """Three significant digits in the unit that suits: ``"45.6 ns"``, ``"3.21 us"``, ``"120 ms"``, ``"1.20 s"``."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit, size = next(((unit, size) for unit, size in units.items() if seconds >= size), ("ns", 1e-9))
    value = seconds / size
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def _plain(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def factor(value: float | None) -> str:
    """``"1.50x"``."""
    return "" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """``"95%"``."""
    return "" if value is None else f"{value:.0%}"
