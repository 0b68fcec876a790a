# SPDX-License-Identifier: MIT
"""Pictures of a run: speed-up per layer, share of the clone limit per layer, time against size."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .analysis import Group, anyone, headline, speedup
from .environment import describe
from .plan import PHASES
from .results import Results

_COLORS = {"eager": "#9a9a9a", "compile": "#4c78a8", "fused": "#e4572e", "se": "#b8a3d1", "clone": "#222222"}
_COLORS["triton"] = "#72b7b2"


def save_all(results: Results, directory: Path, stem: str) -> list[Path]:
    """Write ``stem-speedup.png``, ``stem-clone.png`` and ``stem-time.png``; returns their paths."""
    return save({"speedup": _speedups, "clone": _shares, "time": _times}, results, directory, stem)


def save(
    drawings: Mapping[str, Callable[[Results], Figure]], results: Results, directory: Path, stem: str
) -> list[Path]:
    """Write ``stem-NAME.png`` for every drawing; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        with plt.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
            figure = draw(results)
        paths.append(directory / f"{stem}-{name}.png")
        figure.savefig(paths[-1], dpi=120)
        plt.close(figure)
    return paths


def _speedups(results: Results) -> Figure:
    figure, axes = _panels(results, "Speed-up over eager PyTorch, ECA in ResNet-50")
    for ax, phase in zip(axes, PHASES, strict=True):
        bars(ax, headline(results.rows, phase), ("compile", "fused"), lambda g, name: speedup(g, "eager", name))
        ax.axhline(1, color=_COLORS["eager"], label="eager", zorder=0)
        ax.set(title=phase, ylabel="times faster than eager")
    axes[0].legend(loc="upper left", ncols=3, frameon=False)
    return figure


def _shares(results: Results) -> Figure:
    figure, axes = _panels(results, "Bytes per second as a share of clone(), ECA in ResNet-50")
    for ax, phase in zip(axes, PHASES, strict=True):
        bars(ax, headline(results.rows, phase), ("eager", "compile", "fused"), _share)
        ax.axhline(1, color=_COLORS["clone"], linestyle="--", label="clone", zorder=0)
        ax.set(title=phase, ylabel="share of the clone's rate")
    axes[0].legend(loc="upper left", ncols=4, frameon=False)
    return figure


def _times(results: Results) -> Figure:
    plain = [r for r in results.rows if (r.variant, r.dtype, r.layout) == ("eca", "float32", "contiguous")]
    figure, axes = plt.subplots(1, len(PHASES), figsize=(13, 6), sharey=True, layout="constrained")
    figure.suptitle(f"Time against size, ECA, float32\n{describe(results.environment)}")
    for ax, phase in zip(axes, PHASES, strict=True):
        for provider, color in _COLORS.items():
            rows = [r for r in plain if r.phase == phase and r.provider == provider]
            sizes = [r.case.elements * 4 / 1e6 for r in rows]
            ax.scatter(sizes, [r.timing.q50 * 1e3 for r in rows], s=28, color=color, label=provider)
        ax.set(xscale="log", yscale="log", title=phase, xlabel="size of the feature map in MB")
        ax.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("median time in ms")
    axes[0].legend(frameon=False)
    return figure


def _share(group: Group, provider: str) -> float | None:
    return group[provider].share_of_clone if provider in group else None


def _panels(results: Results, title: str) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(len(PHASES), 1, figsize=(13, 9), layout="constrained")
    figure.suptitle(f"{title}, float32\n{describe(results.environment)}")
    return figure, list(axes)


def bars(
    ax: Axes, members: list[Group], providers: tuple[str, ...], value: Callable[[Group, str], float | None]
) -> None:
    """One cluster of bars per group, one bar per provider."""
    width = 0.8 / len(providers)
    for i, provider in enumerate(providers):
        heights = [value(group, provider) or 0.0 for group in members]
        places = [x + (i - (len(providers) - 1) / 2) * width for x in range(len(members))]
        bars = ax.bar(places, heights, width, color=_COLORS[provider], label=provider)
        if provider == "fused":
            ax.bar_label(bars, fmt="%.2f", fontsize=11, padding=2)
    cases = [anyone(group).case for group in members]
    ax.set_xticks(range(len(cases)), [f"{case.name.split('.')[1]}\nbatch {case.n}" for case in cases])
    ax.margins(y=0.2)
