# SPDX-License-Identifier: MIT
"""Tables of results: for the terminal and, as Markdown, for README and docs."""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .cases import BLOCK, NETWORKS, PHASES, PROVIDERS, TINY, VARIANTS
from .environment import describe
from .results import Results, Row
from .timing import verdict

Group = dict[str, Row]  # provider -> its row, of one job
LARGE = 10_000_000  # bytes of a map above which a CPU's caches miss, so that a copy is the limit
LARGE_ON_GPU = 50_000_000
NETWORK_NAMES = {"resnet50": "ResNet-50", "resnet50d": "ResNet-50-D"}


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


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows measured together, by provider; of a job measured twice, the run with more providers."""
    by_job: dict[object, list[Group]] = {}
    last = None
    for row in rows:
        runs = by_job.setdefault(row.job, [])
        if row.job != last or row.provider in runs[-1]:
            runs.append({})
        runs[-1][row.provider], last = row, row.job
    return [max(reversed(runs), key=len) for runs in by_job.values()]


def of_layers(results: Results) -> list[Group]:
    """Groups of layers, without networks, launch plans and kernels."""
    return groups(row for row in results.rows if row.variant in VARIANTS)


def anyone(group: Group) -> Row:
    """Any row of a group, for the fields that all share."""
    return next(iter(group.values()))


def speedup(group: Group, base: str, provider: str = "fused") -> float | None:
    """How many times faster ``provider`` is than ``base``, by median; None if either was not measured."""
    return group[base].q50 / group[provider].q50 if {base, provider} <= group.keys() else None


def share(group: Group, provider: str = "fused") -> float | None:
    """The rate of ``provider`` in bytes per second over that of the copy in the same rounds."""
    return group[provider].gb_per_s / group["clone"].gb_per_s if {"clone", provider} <= group.keys() else None


def mean_speedup(of: Iterable[Group], base: str) -> float | None:
    """The geometric mean of the speed-ups over ``base``; None if there is none."""
    values = [value for value in (speedup(group, base) for group in of) if value is not None]
    return statistics.geometric_mean(values) if values else None


def is_slower(group: Group, base: str = "eager") -> bool:
    """Whether ``fused`` is slower than ``base`` beyond noise."""
    return {base, "fused"} <= group.keys() and verdict(group[base].timing, group["fused"].timing) == "slower"


def headline(results: Results, phase: str, dtype: str = "float32", layout: str = "contiguous") -> list[Group]:
    """ECA in ResNet-50; on a GPU only at batch 256."""
    wanted = ("eca", phase, dtype, layout)
    found = [g for g in of_layers(results) if (r := anyone(g)).case.startswith("resnet50.") and r.job[2:] == wanted]
    return [g for g in found if anyone(g).shape[0] == 256] if results.environment["gpu"] else found


@dataclass(frozen=True)
class Goal:
    """A goal: ``measured`` (None if not measured) must be at least, or at most, ``target``."""

    what: str
    target: float
    measured: float | None
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def goals(results: Results) -> list[Goal]:
    """The project's goals for the device that was measured."""
    if results.environment["gpu"]:
        return _gpu_goals(results)
    speedups = {"forward": {"eager": 1.5, "compile": 1.4}, "training": {"eager": 2.8, "compile": 2.2}}
    found = [
        Goal(f"{phase}, times faster than {base}", target, mean_speedup(headline(results, phase), base))
        for phase, targets in speedups.items()
        for base, target in targets.items()
    ]
    shares = [share(g) for g in headline(results, "forward") if anyone(g).map_bytes > LARGE]
    found.append(Goal("forward, least share of clone's rate above 10 MB", 0.85, _least(shares), unit=""))
    compared = [group for group in of_layers(results) if speedup(group, "eager") is not None]
    slower = sum(map(is_slower, compared)) if compared else None
    found.append(Goal("cases slower than eager by more than noise", 0, slower, at_least=False, unit=""))
    for phase, target in (("forward", 3), ("training", 45)):
        tiny = [
            r for r in results.rows if (r.case, r.variant, r.phase, r.provider) == (TINY.name, "eca", phase, "function")
        ]
        microseconds = tiny[0].q50 * 1e6 if tiny else None
        found.append(Goal(f"{phase}, one call of the function on a tiny tensor", target, microseconds, False, " us"))
    return found


def _gpu_goals(results: Results) -> list[Goal]:
    large = [g for g in of_layers(results) if anyone(g).map_bytes >= LARGE_ON_GPU and anyone(g).variant == "eca"]

    def of(phase: str) -> list[Group]:
        return [g for g in large if anyone(g).phase == phase]

    def least(phase: str) -> float | None:
        return _least(map(share, of(phase)))

    costs = [cost for (how, _, _), cost in network_costs(results, "residual").items() if how == "compiled"]
    return [
        Goal("forward, least share of a copy's rate from 50 MB on", 0.92, least("forward"), unit=""),
        Goal("backward, least share of a copy's rate from 50 MB on", 0.88, least("backward"), unit=""),
        Goal("forward, times faster than compile from 50 MB on", 1.4, mean_speedup(of("forward"), "compile")),
        Goal("training, times faster than compile from 50 MB on", 1.3, mean_speedup(of("training"), "compile")),
        Goal("compiled network, most that attention adds", 0.02, max(costs, default=None), at_least=False, unit=""),
    ]


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def goal_table(results: Results) -> Table:
    answers = {True: "yes", False: "no", None: ""}
    lines = []
    for goal in goals(results):
        target = f"{'>=' if goal.at_least else '<='} {goal.target:g}{goal.unit}"
        measured = "not measured" if goal.measured is None else f"{float(f'{goal.measured:.3g}'):g}{goal.unit}"
        lines.append([goal.what, target, measured, answers[goal.met]])
    return Table("Goals", ["goal", "target", "measured", "met"], lines)


def layers(results: Results, only: Sequence[Group] | None = None, title: str = "Layers") -> Table:
    """Median times; the last columns are for ``fused``."""
    members = of_layers(results) if only is None else only
    providers = [name for name in PROVIDERS if any(name in group for group in members)]
    lines = []
    for group in members:
        row = anyone(group)
        kind = " ".join([row.variant, row.phase, row.dtype, row.layout])
        name = [layer_of(row), str(row.shape[0]), *([kind] if only is None else [])]
        times = (duration(group[name].q50) if name in group else "" for name in providers)
        eager = factor(speedup(group, "eager")) + (" (slower)" if is_slower(group) else "")
        lines.append([*name, *times, percent(share(group)), eager, factor(speedup(group, "compile"))])
    columns = ["layer", "batch", *(["what"] if only is None else []), *providers]
    return _without_empty(title, [*columns, "of clone", "vs eager", "vs compile"], lines, 2 + (only is None))


def blocks(results: Results) -> Table:
    """Batch norm, ECA, shortcut and ReLU: medians, and the speed-up of one call for all of it."""
    names = ("eager", "compile", "residual", "plain")
    members, lines = groups(row for row in results.rows if row.variant == BLOCK), []
    for group in members:
        row = anyone(group)
        what = f"{layer_of(row)}, {row.phase.removeprefix('residual_')} {row.dtype} {row.layout}"
        times = (duration(group[name].q50) if name in group else "" for name in (*names, "fused"))
        lines.append([what, str(row.shape[0]), *times, *(factor(speedup(group, name)) for name in names)])
    if members:
        lines.append(["geometric means", *[""] * 6, *(factor(mean_speedup(members, name)) for name in names)])
    columns = ["tail of a block", "batch", *names, "ours", *(f"vs {name}" for name in names)]
    return _without_empty("Blocks", columns, lines, 2)


def shares(results: Results) -> Table:
    """ECA in ResNet-50's four layers: shares of a copy's rate, a line for each pass, dtype and layout."""
    peers = ("fused", "compile", "autotune", "triton", "eager")
    kinds = dict.fromkeys(anyone(g).job[2:] for g in of_layers(results) if anyone(g).case.startswith("resnet50."))
    lines = []
    for variant, phase, dtype, layout in kinds:
        if variant == "eca" and (found := headline(results, phase, dtype, layout)):
            cells = [" ".join(f"{share(g, name):.0%}" for g in found if share(g, name)) for name in peers]
            name = f"{phase.removeprefix('residual_')}{', residual and ReLU' * phase.startswith('residual')}"
            lines.append([f"{dtype} {layout}, {name}", *cells])
    columns = ["maps and pass; batch 256, layer1 to layer4", *peers]
    return _without_empty("ResNet-50: of a copy's rate", columns, lines, 1)


def _without_empty(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], labels: int) -> Table:
    """The table without empty columns."""
    used = [i for i in range(len(columns)) if i < labels or any(line[i] for line in lines)]
    return Table(title, [columns[i] for i in used], [[line[i] for i in used] for line in lines], labels)


def overview(results: Results) -> Table:
    """One line per model, variant, dtype and layout: geometric means of the speed-up over eager."""
    by_setting: dict[tuple[str, ...], dict[str, list[Group]]] = {}
    for group in of_layers(results):
        row = anyone(group)
        setting = (row.case.split(".")[0], row.variant, row.dtype, row.layout)
        by_setting.setdefault(setting, {}).setdefault(row.phase, []).append(group)
    lines = [
        [*setting, *(factor(mean_speedup(by_phase.get(phase, ()), "eager")) for phase in PHASES)]
        for setting, by_phase in by_setting.items()
    ]
    columns = ["model", "variant", "dtype", "layout", *(f"{phase} vs eager" for phase in PHASES)]
    return Table("Everything, as geometric means", columns, lines, labels=4)


def overhead(results: Results) -> Table:
    """The time of one call on a tiny tensor."""
    names = ("eager", "fused", "function")
    lines = [
        [anyone(g).variant, anyone(g).phase, *(duration(g[name].q50) if name in g else "" for name in names)]
        for g in of_layers(results)
        if anyone(g).case == TINY.name
    ]
    return Table(f"One call on {list(TINY.shape)}", ["variant", "pass", "eager", "module", "function"], lines, labels=2)


def network_costs(results: Results, name: str) -> dict[tuple[str, str, int], float]:
    """(how, phase, batch): the relative time beyond the network without attention, each in its faster memory format."""
    best = _best_formats(results)
    return {key[:3]: row.q50 / best[(*key[:3], "plain")].q50 - 1 for key, row in best.items() if key[3] == name}


def _best_formats(results: Results) -> dict[tuple[str, str, int, str], Row]:
    best: dict[tuple[str, str, int, str], Row] = {}
    for row in results.rows:
        if row.variant in ("eager", "compiled"):
            key = (row.variant, row.phase, row.shape[0], row.provider)
            best[key] = min(best.get(key, row), row, key=lambda row: row.q50)
    return best


def networks(results: Results) -> Table:
    """Whole networks, each in the faster of the measured memory formats."""
    best, lines = _best_formats(results), []
    for (how, phase, batch, name), row in best.items():
        rate = f"{batch / row.q50:.1f}" if batch / row.q50 < 100 else f"{batch / row.q50:.0f}"
        cost = f"{row.q50 / best[how, phase, batch, 'plain'].q50 - 1:+.1%}" if name != "plain" else ""
        spread, memory = f"{(row.q80 - row.q20) / row.q50:.0%}", f"{(row.peak_bytes or 0) / 1e6:.0f} MB"
        network = NETWORKS[name].replace("ResNet-50", NETWORK_NAMES[row.case])
        lines.append([f"{how} {phase}, batch {batch}", network, rate, cost, spread, memory, row.layout])
    columns = ["pass", "network", "images/s", "cost", "spread", "peak memory", "format"]
    return Table("Whole networks", columns, lines, labels=2)


def headline_sentence(results: Results) -> str:
    """A sentence on the cost of ECA in a network before and after conversion, in eager mode."""
    how = {
        "converted": "after `convert(model)`",
        "residual": "with `fuse_residual=True`",
        "norm": "with `fuse_norm=True` too",
    }
    costs = {name: network_costs(results, name) for name in ("eager", *how)}
    first = [next((key for key in costs["eager"] if key[:2] == ("eager", phase)), None) for phase in PHASES]
    if None in first:
        return "No network was measured."
    measured = [name for name in how if any(key in costs[name] for key in first)]
    forward, training = ([f"{costs[name][key]:+.1%}" for name in ("eager", *measured)] for key in first if key)
    best, last = _best_formats(results), measured[-1]
    noisy = any(not verdict(best[(*key, "eager")].timing, best[(*key, last)].timing) for key in first if key)
    batches = " and ".join(dict.fromkeys(str(key[2]) for key in first if key))
    network = NETWORK_NAMES[next(iter(best.values())).case]
    told = [f"{cost} {how[name]}" for cost, name in zip(forward[1:], measured, strict=True)]
    after, steps = (" and ".join(", ".join(parts).rsplit(", ", 1)) for parts in (told, training))
    return (
        f"ECA adds {forward[0]} to the inference time of a {network} in eager mode, {after}; to a training step "
        f"{steps} (batch {batches}, 224 x 224, medians"
        + ("; on this machine single calls vary by more than that)." if noisy else ").")
    )


def plans(results: Results) -> Table:
    """The plan's choice for each layer and the best plans that were tried, as shares of a copy's rate."""
    lines = []
    for group in groups(row for row in results.rows if row.variant == "eca plans"):
        own = next(name for name in group if name.startswith("own "))
        tried = sorted(group.keys() - {own, "clone"}, key=lambda name: group[name].q50)
        row, best = group[own], [name for name in tried if group[name].rounds > 1][:3]
        cells = [f"{'two-phase' if name.startswith('-1') else name} {share(group, name):.0%}" for name in best]
        gain = factor(speedup(group, own, best[0])) if best else ""
        what = f"{row.phase} {row.dtype} {row.layout}"
        mine = f"{own.removeprefix('own ')} {share(group, own):.0%}"
        lines.append([layer_of(row), str(row.shape[0]), what, mine, *cells, *[""] * (3 - len(cells)), gain])
    columns = ["layer", "batch", "what", "the plan", "best", "second", "third", "best / the plan"]
    return Table("Launch plans, blocks/parts/threads: of a copy's rate", columns, lines, labels=3)


def kernels(results: Results) -> Table:
    """The time of each kernel of a call of eca_cuda."""
    lines = []
    for group in groups(row for row in results.rows if row.variant == "eca kernels"):
        row = anyone(group)
        times = ", ".join(f"{name} {duration(one.q50)}" for name, one in group.items())
        lines.append([layer_of(row), f"{row.phase} {row.dtype} {row.layout}", times])
    return Table("Kernels of a call", ["layer", "what", "kernels"], lines, labels=3)


def checks(results: Results) -> Table:
    """All commands and how they ended."""
    lines = []
    for check in results.checks:
        seconds = f"{check.seconds:.0f} s" if check.seconds else ""
        last = (check.note.strip().splitlines() or [""])[-1].replace("|", "/")[:160]
        lines.append([check.check.replace("|", "/"), check.status, seconds, last])
    return Table("What ran and how it ended", ["what", "status", "time", "last words"], lines, labels=4)


def compare(old: Results, new: Results) -> Table:
    """Ratios new / old of the median times, slowest first; marked where the ranges from 20 % to 80 % do not overlap.

    The rows of eager and clone show how much the machine itself changed.
    """
    before = {(row.job, row.provider): row for row in old.rows}
    pairs = [(before[row.job, row.provider], row) for row in new.rows if (row.job, row.provider) in before]
    pairs.sort(key=lambda pair: pair[1].q50 / pair[0].q50, reverse=True)
    lines = []
    for a, b in pairs:
        job, ratio = f"{b.case} {b.variant} {b.phase} {b.dtype} {b.layout}", f"{b.q50 / a.q50:.2f}"
        lines.append([job, b.provider, duration(a.q50), duration(b.q50), ratio, verdict(a.timing, b.timing)])
    alone = len(old.rows) + len(new.rows) - 2 * len(pairs)
    title = f"New against old: {len(pairs)} rows in both runs, {alone} in one of them only"
    return Table(title, ["job", "provider", "old", "new", "new / old", "beyond noise"], lines, labels=2)


def tests_sentence(results: Results) -> str:
    """A sentence on the tests that ran on the device, over all commands."""
    notes = " ".join(check.note for check in results.checks if check.check.startswith("tests "))
    passed, failed = (sum(map(int, re.findall(rf"(\d+) {word}", notes))) for word in ("passed", "failed"))
    return f"{passed:,} tests passed, {failed} failed." if notes else "No test was run."


BY_NAME: dict[str, Callable[[Results], str]] = {
    "environment": lambda results: describe(results.environment),
    "headline": headline_sentence,
    "goals": lambda results: goal_table(results).markdown(),
    "forward": lambda results: layers(results, headline(results, "forward")).markdown(),
    "training": lambda results: layers(results, headline(results, "training")).markdown(),
    "layers": lambda results: layers(results).markdown(),
    "blocks": lambda results: blocks(results).markdown(),
    "shares": lambda results: shares(results).markdown(),
    "overview": lambda results: overview(results).markdown(),
    "overhead": lambda results: overhead(results).markdown(),
    "networks": lambda results: networks(results).markdown(),
    "plans": lambda results: plans(results).markdown(),
    "kernels": lambda results: kernels(results).markdown(),
    "tests": tests_sentence,
    "checks": lambda results: checks(results).markdown(),
}


def for_terminal(results: Results) -> list[Table]:
    """All tables that are not empty, the most important last."""
    of_gpu = (checks, kernels, plans, layers, blocks, networks, shares)
    of_cpu = (layers, overhead, overview, blocks, networks)
    made = [make(results) for make in (of_gpu if results.environment["gpu"] or results.environment["dry"] else of_cpu)]
    with_layers = [goal_table(results)] if of_layers(results) else []
    return [table for table in (*made, *with_layers) if table.rows]


def layer_of(row: Row) -> str:
    """``"layer1, 256 x 56 x 56"``."""
    network, layer = row.case.split(".")[:2]
    name = layer if network == "resnet50" else f"{network} {layer}"
    return f"{name}, {' x '.join(map(str, row.shape[1:]))}"


def duration(seconds: float) -> str:
    """Three significant digits: ``"45.6 ns"``, ``"3.21 us"``, ``"120 ms"``, ``"1.20 s"``."""
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    unit, size = next(((unit, size) for unit, size in units.items() if seconds >= size), ("ns", 1e-9))
    value = seconds / size
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def factor(value: float | None) -> str:
    """``"1.50x"``."""
    return "" if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    """``"95%"``."""
    return "" if value is None else f"{value:.0%}"
