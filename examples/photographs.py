# SPDX-License-Identifier: MIT
"""Compares fused and eager attention in ECA-ResNet-50, layer by layer, on the feature maps of two photographs.

The photographs are the two that scikit-learn ships; the weights are random, nothing is downloaded. The error of every
attention layer and of the network's logits against float64 must be within the budget of eca_cuda.testing, which
follows from the error of eager PyTorch.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torch
from _layers import Layer, check, measure_layers
from _models import eca_resnet50
from _options import at_least, configure_torch, make_parser
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor
from torchvision.models import ResNet50_Weights

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
FIGURE_INCHES, FIGURE_DPI = (16, 10), 100
CHANNELS_SHOWN = 64


def load_photographs(size: int) -> Tensor:
    """The photographs as ResNet-50 expects them, ``[2, 3, size, size]``: resized, cropped, normalised."""
    preprocess = ResNet50_Weights.DEFAULT.transforms(crop_size=size, resize_size=size)
    return torch.stack([preprocess(Image.fromarray(load_sample_image(name))) for name in PHOTOGRAPHS])


def make_table(layers: Sequence[Layer]) -> Table:
    """One row per layer; the last one has the worst budget and the sums of the times."""
    table = Table(
        title="Attention layers of ECA-ResNet-50, two photographs",
        box=box.SIMPLE,
        collapse_padding=True,
        show_footer=True,
    )
    fused_ms, eager_ms = sum(layer.fused_ms for layer in layers), sum(layer.eager_ms for layer in layers)
    worst = max(layer.used_budget for layer in layers)
    footers = {"layer": "all", "feature map": "", "k": "", "gates": "", "budget": f"{worst:.1%}"}
    footers |= {"eager ms": f"{eager_ms:.2f}", "fused ms": f"{fused_ms:.2f}"}
    footers |= {"speedup": f"{eager_ms / fused_ms:.2f}"}
    for name, footer in footers.items():
        table.add_column(name, footer, justify="left" if name == "layer" else "right", no_wrap=True)
    for layer in layers:
        table.add_row(
            layer.name,
            "×".join(map(str, layer.shape)),
            str(layer.kernel_size),
            f"{layer.gates.min():.2f}–{layer.gates.max():.2f}",
            f"{layer.used_budget:.1%}",
            f"{layer.eager_ms:.2f}",
            f"{layer.fused_ms:.2f}",
            f"{layer.speedup:.2f}",
        )
    return table


def draw(layers: Sequence[Layer], path: Path) -> None:
    """Draw the photographs, the gates of the last layer of each stage, and the time of every layer."""
    stage_ends = {layer.name.split(".")[0]: layer for layer in layers}
    figure = Figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
    figure.suptitle("Efficient Channel Attention in a ResNet-50 with random weights", fontsize=18)
    first, second = PHOTOGRAPHS
    layer1, layer2, layer3, layer4 = stage_ends
    rows = [[first, layer1, layer2], [second, layer3, layer4], ["time", "time", "time"]]
    axes = figure.subplot_mosaic(rows, width_ratios=(3, 4, 4))
    for name in PHOTOGRAPHS:
        axes[name].imshow(load_sample_image(name))
        axes[name].set_title(name)
        axes[name].axis("off")
    for stage, layer in stage_ends.items():
        _draw_gates(axes[stage], layer)
    _draw_times(axes["time"], layers)
    figure.savefig(path)


def _draw_gates(axes: Axes, layer: Layer) -> None:
    for name, gates in zip(PHOTOGRAPHS, layer.gates, strict=True):
        axes.plot(gates[:CHANNELS_SHOWN], marker=".", linewidth=1, label=name)
    axes.set_title(f"Gates of {layer.name}, k = {layer.kernel_size}")
    axes.set(xlabel=f"channel, first {CHANNELS_SHOWN} of {layer.shape[1]}", ylabel="gate")
    axes.set(xlim=(-1, CHANNELS_SHOWN), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", ncols=len(PHOTOGRAPHS))


def _draw_times(axes: Axes, layers: Sequence[Layer]) -> None:
    positions, width = range(len(layers)), 0.4
    eager, fused = [layer.eager_ms for layer in layers], [layer.fused_ms for layer in layers]
    axes.bar([p - width / 2 for p in positions], eager, width, label="eager PyTorch", color="tab:gray")
    bars = axes.bar([p + width / 2 for p in positions], fused, width, label="fused", color="tab:green")
    axes.bar_label(bars, [f"{layer.speedup:.1f}×" for layer in layers], padding=2)
    axes.set_xticks(positions, [f"{layer.name}\n{'×'.join(map(str, layer.shape[1:]))}" for layer in layers], fontsize=9)
    axes.set(title="Time per layer, both photographs (label: eager / fused)", ylabel="median time, ms")
    axes.margins(x=0.01)
    axes.legend()


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the example: 0 when everything is within its error budget, 1 when something is not."""
    parser = make_parser(__doc__, output="photographs.png", threads=torch.get_num_threads())
    parser.add_argument("--size", type=at_least(32), default=224, help="pixels per side (default: %(default)s)")
    parser.add_argument("--rounds", type=at_least(1), default=50, help="timing rounds per layer (default: %(default)s)")
    arguments = parser.parse_args(argv)
    configure_torch(arguments.threads)
    console = Console()
    network = eca_resnet50(arguments.seed).to(arguments.device)
    photographs = load_photographs(arguments.size).to(arguments.device)
    try:
        layers = measure_layers(network, photographs, arguments.rounds)
        used = check("logits", network, photographs, terms=network.fc.in_features)
    except AssertionError as failure:
        console.print(f"Not within budget: {failure}", style="red", markup=False)
        return 1
    console.print(make_table(layers))
    console.print(f"Every layer is within its error budget, and so are the logits ({used:.1%} of theirs).")
    draw(layers, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
