# SPDX-License-Identifier: MIT
"""Plots of results, for light and dark pages: share of a copy's rate, time against size, cost of attention."""

from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .environment import describe
from .results import Results
from .tables import NETWORK_NAMES, Group, anyone, headline, network_costs, of_layers, share

COLORS = {"eager": "#8c959f", "triton": "#3d9e98", "compile": "#4c84c4", "autotune": "#8a63d2", "fused": "#e4572e"}
LABELS = {"eager": "eager", "triton": "two Triton kernels", "compile": "torch.compile", "autotune": "max-autotune"}
LABELS |= {"fused": "eca_cuda", "clone": "a copy"}
INK = {"light": "#1f2328", "dark": "#e6edf3"}
_COSTS = {
    "eager": "as it is",
    "converted": "convert(model)",
    "residual": "fuse_residual=True",
    "norm": "fuse_norm=True",
}


def save_all(results: Results, folder: Path, stem: str, names: Iterable[str] = ("share", "time", "cost")) -> list[Path]:
    """Write ``stem-NAME-MODE.svg`` for each of ``names`` that these results have data for; return the paths."""
    made = []
    drawings = {"share": _shares, "time": _times, "cost": _costs}
    for name, draw in ((name, drawings[name]) for name in names):
        for mode, ink in INK.items():
            style = {f"{part}.color": ink for part in ("xtick", "ytick", "text")}
            style |= {"axes.edgecolor": ink, "axes.labelcolor": ink, "axes.titlecolor": ink, "font.size": 11}
            style |= {"axes.spines.top": False, "axes.spines.right": False}
            style |= {"svg.hashsalt": "eca_cuda", "svg.fonttype": "none"}
            with plt.rc_context(style):
                figure = draw(results)
                if figure is not None:
                    made.append(folder / f"{stem}-{name}-{mode}.svg")
                    figure.savefig(made[-1], transparent=True, metadata={"Date": None})
                    plt.close(figure)
    return made


def _shares(results: Results) -> Figure | None:
    """A panel for each pass: bars of all providers for each layer, and a line for the copy."""
    dtype = "float16" if results.environment["gpu"] else "float32"
    panels = {phase: headline(results, phase, dtype) for phase in ("forward", "backward", "training")}
    panels = {phase: found for phase, found in panels.items() if any(share(group) for group in found)}
    if "forward" not in panels:
        return None
    figure, axes = _panels(len(panels), f"ECA in ResNet-50, {dtype}: bytes per second, of a copy's", results)
    for ax, (phase, found) in zip(axes, panels.items(), strict=True):
        names = [name for name in COLORS if any(share(group, name) for group in found)]
        width = 0.84 / len(names)
        for i, name in enumerate(names):
            places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(found))]
            heights = [100 * (share(group, name) or 0) for group in found]
            bars = ax.bar(places, heights, width * 0.92, color=COLORS[name], label=LABELS[name])
            if name == "fused":
                ax.bar_label(bars, fmt="%.0f", fontsize=9, padding=1)
        ax.axhline(100, color=plt.rcParams["text.color"], linestyle="--", linewidth=1, label=LABELS["clone"], zorder=0)
        rows = [anyone(group) for group in found]
        ax.set_xticks(range(len(rows)), [f"{row.case.split('.')[1]}\nbatch {row.shape[0]}" for row in rows], fontsize=9)
        ax.set(title=phase, ylabel="% of a copy's rate")
        ax.set_ylim(top=min(ax.get_ylim()[1], 160))  # a map that stays in a cache may exceed 100 % by far
    _legend(figure, axes[0])
    return figure


def _times(results: Results) -> Figure | None:
    """Median times of all layers of one dtype, against the bytes of a map."""
    dtype = "float16" if results.environment["gpu"] else "float32"
    kinds = [phase for phase in ("forward", "training", "backward") if _of_kind(results, phase, dtype)][:2]
    if len(kinds) < 2:
        return None
    figure, axes = _panels(1, f"ECA, {dtype}, contiguous: time against size", results, columns=2)
    for ax, phase in zip(axes, kinds, strict=True):
        found = sorted(_of_kind(results, phase, dtype), key=lambda group: anyone(group).map_bytes)
        for name in (*COLORS, "clone"):
            points = [(g[name].map_bytes / 1e6, g[name].q50 * 1e6) for g in found if name in g]
            color = COLORS.get(name, plt.rcParams["text.color"])
            ax.plot(*zip(*points, strict=True), "o-", ms=4, lw=1, color=color, label=LABELS[name]) if points else None
        ax.set(xscale="log", yscale="log", title=phase, xlabel="MB of the feature map", ylabel="microseconds")
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        ax.grid(True, which="major", alpha=0.3)
    _legend(figure, axes[0])
    return figure


def _of_kind(results: Results, phase: str, dtype: str) -> list[Group]:
    wanted = ("eca", phase, dtype, "contiguous")
    return [group for group in of_layers(results) if anyone(group).job[2:] == wanted and len(group) > 1]


def _costs(results: Results) -> Figure | None:
    """Bars: the time that attention adds to a network, unconverted and converted."""
    costs = {name: found for name in _COSTS if (found := network_costs(results, name))}
    kinds = list(costs.get("eager", ()))
    if not kinds:
        return None
    network = next(NETWORK_NAMES[row.case] for row in results.rows if row.case in NETWORK_NAMES)
    figure, (ax,) = _panels(1, f"Time that ECA adds to a {network}", results, height=1.3 + 0.9 * len(kinds))
    height = 0.8 / len(costs)
    colors = (COLORS[name] for name in ("eager", "compile", "fused", "autotune"))
    for i, (name, color) in enumerate(zip(costs, colors, strict=False)):
        values = [100 * costs[name].get(kind, 0.0) for kind in kinds]
        places = [y + (i - (len(costs) - 1) / 2) * height for y in range(len(kinds))]
        bars = ax.barh(places, values, height * 0.9, color=color, label=_COSTS[name])
        ax.bar_label(bars, fmt="%+.1f %%", fontsize=9, padding=2)
    ax.axvline(0, color=plt.rcParams["text.color"], linewidth=1)
    ax.set_yticks(range(len(kinds)), [f"{phase}, {how}\nbatch {batch}" for how, phase, batch in kinds])
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel("% of the network without attention")
    _legend(figure, ax)
    return figure


def _panels(rows: int, title: str, results: Results, columns: int = 1, height: float = 0) -> tuple[Figure, list[Axes]]:
    """As wide as a README is shown."""
    size = (9.2, height or 1.2 + 2.5 * rows + 1.0 * (columns > 1))
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle(f"{title}\n{describe(results.environment)}", fontsize=11)
    return figure, list(axes.flat)


def _legend(figure: Figure, ax: Axes) -> None:
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=10)
