# SPDX-License-Identifier: MIT
"""Pictures of a GPU's results: share of the limit per layer, time against size, cost of attention per network."""

from pathlib import Path

from matplotlib.figure import Figure

from ..analysis import anyone, groups
from ..environment import describe
from ..plots import bars, plt, save
from ..results import Results
from .tables import by_setting, cost

_DRAWN = ("eager", "compile", "triton", "fused")


def save_all(results: Results, directory: Path, stem: str) -> list[Path]:
    """Write ``stem-share.png``, ``stem-time.png`` and ``stem-cost.png``; returns their paths."""
    return save({"share": _shares, "time": _times, "cost": _costs}, results, directory, stem)


def _shares(results: Results) -> Figure:
    phases = ("forward", "training")
    figure, axes = plt.subplots(len(phases), 1, figsize=(13, 9), layout="constrained")
    figure.suptitle(f"Bytes per second as a share of a copy's, float16\n{describe(results.environment)}")
    for ax, phase in zip(axes, phases, strict=True):
        wanted = [r for r in results.rows if (r.phase, r.dtype, r.layout) == (phase, "float16", "contiguous")]
        members = [g for g in groups(wanted) if "fused" in g and anyone(g).case.n == 256]
        bars(ax, members, _DRAWN, lambda g, name: g[name].share_of_clone if name in g else None)
        ax.axhline(1, color="#222222", linestyle="--", label="clone", zorder=0)
        ax.set(title=phase, ylabel="share of the copy's rate")
    axes[0].legend(loc="upper left", ncols=5, frameon=False)
    return figure


def _times(results: Results) -> Figure:
    figure, ax = plt.subplots(figsize=(13, 6), layout="constrained")
    figure.suptitle(f"Time against bytes that must move, forward, float16\n{describe(results.environment)}")
    for provider in (*_DRAWN, "clone"):
        chosen = (provider, "forward", "float16", "contiguous")
        rows = [r for r in results.rows if (r.provider, r.phase, r.dtype, r.layout) == chosen]
        ax.scatter([r.bytes / 1e6 for r in rows], [r.timing.q50 * 1e6 for r in rows], s=28, label=provider)
    ax.set(xscale="log", yscale="log", xlabel="MB", ylabel="median time in us")
    ax.grid(True, which="major", alpha=0.3)
    ax.legend(frameon=False)
    return figure


def _costs(results: Results) -> Figure:
    figure, ax = plt.subplots(figsize=(13, 6), layout="constrained")
    figure.suptitle(f"Time that attention adds to a ResNet-50-D\n{describe(results.environment)}")
    settings = by_setting(results.models)
    names = ("eager", "converted", "residual", "inline")
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [100 * (cost(rows, name) or 0.0) for rows in settings.values()]
        ax.bar([x + (i - 1.5) * width for x in range(len(settings))], heights, width, label=name)
    ax.axhline(2, color="#222222", linestyle="--", label="goal", zorder=0)
    labels = ["\n".join([*map(str, s[:4]), "compiled" if s[4] else "eager"]) for s in settings]
    ax.set_xticks(range(len(settings)), labels, fontsize=8)
    ax.set(ylabel="per cent of the network without attention")
    ax.legend(frameon=False)
    return figure
