# SPDX-License-Identifier: MIT
"""What README says of GPUs: few lines, since README is short."""

from collections.abc import Sequence

from ..analysis import Group, groups, speedup
from ..cases import resnet50
from ..environment import describe
from ..plan import PHASES
from ..results import Results
from ..tables import Table, factor, percent
from .tables import by_setting, cost, layer_of

_CASES = resnet50(256)
_MEANING = "batch 256, float16: of a copy's rate, times faster than eager, than `torch.compile`"


def readme(measured: Sequence[Results]) -> str:
    """The layers of ResNet-50 on every GPU, then what ECA costs a network on each."""
    costs = "\n".join(f"* {describe(results.environment)}. {_costs(results)}" for results in measured)
    return f"{_layers(measured).markdown()}\n\n{costs}\n"


def _layers(measured: Sequence[Results]) -> Table:
    lines = []
    for results in measured:
        name = results.environment["gpu"]["name"].removeprefix("NVIDIA ")
        rows = [row for row in results.rows if (row.dtype, row.layout) == ("float16", "contiguous")]
        for phase in PHASES:
            by_case = {group["fused"].case: group for group in groups(rows) if _is_ours(group, phase)}
            cells = [_cell(by_case[case]) if case in by_case else "" for case in _CASES]
            lines.append([f"{name}, {phase}", *cells])
    layers = [layer_of(case).removeprefix("resnet50 ") for case in _CASES]
    return Table("ResNet-50", [_MEANING, *layers], lines)


def _is_ours(group: Group, phase: str) -> bool:
    return "fused" in group and group["fused"].phase == phase


def _cell(group: Group) -> str:
    figures = (percent(group["fused"].share_of_clone), *(factor(speedup(group, base)) for base in ("eager", "compile")))
    return ", ".join(figure or "-" for figure in figures)


def _costs(results: Results) -> str:
    """Of every pass the first setting of eager and of compiled networks, which is the most valuable one."""
    first: dict[tuple[str, bool], str] = {}
    for (phase, batch, dtype, _, compiled), rows in by_setting(results.models).items():
        added = [cost(rows, name) for name in ("eager", "residual")]
        before, after = ("not measured" if value is None else f"{value:+.1%}" for value in added)
        how = "compiled" if compiled else "eager"
        text = f"{how} {phase} (batch {batch}, {dtype}) {before}, converted **{after}**"
        first.setdefault((phase, compiled), text)
    return f"ECA adds to a ResNet-50-D: {'; '.join(first.values())}." if first else "No network was measured."
