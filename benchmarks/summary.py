# SPDX-License-Identifier: MIT
"""README's one table of speed, made of several result files: ours against each peer that was measured beside it."""

import re
from collections.abc import Iterator, Sequence

from .cases import BLOCK, PHASES
from .results import Results
from .tables import Group, Table, anyone, factor, groups, headline, mean_speedup, network_costs, percent, share

PEERS = ("eager", "compile", "triton")
KINDS = {"forward": "inference", "training": "training", "backward": "backward"}
LAST = ("norm", "residual", "converted")  # the most that was fused, first


def speed(*runs: Results) -> Table:
    """Geometric means over layers, a line for each pass and kind of map; of a network what its attention costs."""
    lines = [[device(run), *line] for run in runs for line in (*_of_layers(run), *_of_blocks(run), *_of_networks(run))]
    shown = [i for i in range(7) if i < 3 or any(line[i] for line in lines)]
    columns = ["device", "what", "maps", *(f"vs {peer}" for peer in PEERS), "of a copy's rate"]
    cells = [[line[i] for i in shown] for line in lines]
    return Table("Speed", [columns[i] for i in shown], _once(cells), labels=3)


def device(run: Results) -> str:
    """``"H200"``, ``"CPU, 2 threads"``; of older sources than those here the commit, too."""
    if not (gpu := run.environment["gpu"]):
        return f"CPU, {(n := run.environment['threads'])} thread{'s' if n != 1 else ''}"
    commit = run.environment.get("commit")
    return re.sub(r"NVIDIA (\w+).*", r"\1", gpu["name"]) + (f", kernels of {commit}" if commit else "")


def _of_layers(run: Results) -> Iterator[list[str]]:
    """ECA in ResNet-50: what was measured beside torch.compile, or where nothing was, beside another peer."""
    kinds = list(dict.fromkeys(row.job[3:] for row in run.rows if row.variant == "eca"))
    found = [(kind, of) for kind in kinds if (of := headline(run, *kind))]
    compiled = [(kind, of) for kind, of in found if "compile" in of[0]]
    for (phase, dtype, layout), of in compiled or [(k, of) for k, of in found if of[0].keys() & {*PEERS}]:
        what = f"ECA, {KINDS[phase.removeprefix('residual_')]}"
        what = what.replace("ECA", "ECA, `+ x`, ReLU") if phase.startswith("residual") else what
        yield [what, _maps(of, dtype, layout), *_against(of), _shares(of)]


def _of_blocks(run: Results) -> Iterator[list[str]]:
    """Batch norm, ECA, shortcut and ReLU in one call, over all layouts."""
    by_kind: dict[tuple[str, str], list[Group]] = {}
    for group in groups(row for row in run.rows if row.variant == BLOCK):
        by_kind.setdefault((anyone(group).phase, anyone(group).dtype), []).append(group)
    for (phase, dtype), of in by_kind.items():
        layouts = " and ".join(dict.fromkeys(anyone(group).layout for group in of))
        what = f"batch norm, ECA, `+ x`, ReLU, {KINDS[phase.removeprefix('residual_')]}"
        yield [what, _maps(of, dtype, layouts), *_against(of), ""]


def _of_networks(run: Results) -> Iterator[list[str]]:
    costs, best = network_costs(run, "eager"), {name: network_costs(run, name) for name in LAST}
    for phase in PHASES:
        key = next((key for key in costs if key[:2] == ("eager", phase)), None)
        name = next((name for name in LAST if key in best[name]), None)
        if key is None or name is None:
            continue
        rows = [row for row in run.rows if (row.variant, row.phase, row.shape[0]) == key]
        network = {"resnet50": "ResNet-50", "resnet50d": "ResNet-50-D"}[rows[0].case]
        what = f"{network}, {KINDS[phase]}: ECA adds {costs[key]:+.1%}, converted {best[name][key]:+.1%}"
        faster = (1 + costs[key]) / (1 + best[name][key])
        yield [what, f"{rows[0].dtype}, batch {key[2]}", factor(faster), "", "", ""]


def _maps(of: Sequence[Group], dtype: str, layout: str) -> str:
    batches = ", ".join(dict.fromkeys(str(anyone(group).shape[0]) for group in of))
    return f"{dtype}, {layout}, batch {batches}"


def _against(of: Sequence[Group]) -> list[str]:
    return [factor(mean_speedup(of, peer)) for peer in PEERS]


def _shares(of: Sequence[Group]) -> str:
    found = [value for group in of if (value := share(group)) is not None]
    return f"{percent(min(found))} to {percent(max(found))}" if found else ""


def _once(lines: list[list[str]]) -> list[list[str]]:
    """A device is named in the first of its lines only."""
    return [["", *line[1:]] if i and line[0] == lines[i - 1][0] else line for i, line in enumerate(lines)]
