# SPDX-License-Identifier: MIT
"""Training with fused attention gives the same loss curve as training with the reference.

A small ResNet learns scikit-learn's handwritten digits three times, from the same weights on the same batches: with
fused attention, with the reference, and with the reference in float64. The fused loss curve must be within the error
budget of eca_cuda.testing at every step: as close to float64 as the float32 reference has been until then, up to a
factor of two and rounding. A wrong gate exceeds the budget at the first step, a wrong gradient within a few steps.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import torch
from _models import digits_resnet, reference_copy
from _options import at_least, configure_torch, make_parser
from _training import BATCH_SIZE, Digits, Training, train_together
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eca_cuda.testing import VARIANTS, Variant, budget, used_budget

FIGURE_INCHES, FIGURE_DPI = (16, 6), 100
# Colour and width of the exact, reference and fused curves: narrow over wide, so that all stay visible.
STYLES = (("lightgray", 9), ("tab:orange", 4), ("black", 1))


@dataclass(frozen=True)
class Comparison:
    """The three trainings of one variant."""

    variant: Variant
    fused: Training
    reference: Training
    exact: Training

    def used_budget(self) -> float:
        """The largest share of its budget that the fused curve uses up to any step; AssertionError above 1."""
        return max(
            used_budget(f"{self.variant.name}, loss up to step {step}", *curves, BATCH_SIZE)
            for step, curves in enumerate(self._growing_curves(), start=1)
        )

    def budgets(self) -> list[float]:
        """How far the fused curve may be from the exact one at every step."""
        return [budget(reference, exact, terms=BATCH_SIZE) for _, reference, exact in self._growing_curves()]

    def trainings(self) -> dict[str, Training]:
        """The trainings by the names in table and plots; "float64" is the reference."""
        return {"fused": self.fused, "reference": self.reference, "float64": self.exact}

    def _growing_curves(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The fused, reference and exact losses of the first step, the first two steps, and so on."""
        fused, reference, exact = (training.losses for training in self.trainings().values())
        return [(fused[:steps], reference[:steps], exact[:steps]) for steps in range(1, len(exact) + 1)]


def compare(variant: Variant, epochs: int, seed: int, samples: int, device: str) -> Comparison:
    """Train the three models."""
    fused = digits_resnet(variant, seed).to(device)
    models = [fused, reference_copy(fused), reference_copy(fused).double()]
    return Comparison(variant, *train_together(models, Digits.load(samples, seed, device), epochs, seed))


def make_table(comparison: Comparison) -> Table:
    """One row per training; errors are those of the loss against float64."""
    table = Table(title=f"Training with {comparison.variant.name}", box=box.SIMPLE)
    table.add_column("attention")
    for name in ("first loss", "last loss", "largest error", "test accuracy", "seconds"):
        table.add_column(name, justify="right")
    exact = comparison.exact.losses
    for name, training in comparison.trainings().items():
        table.add_row(
            name,
            f"{training.losses[0]:.7f}",
            f"{training.losses[-1]:.7f}",
            f"{(training.losses - exact).abs().max():.1e}",
            f"{training.accuracies[-1]:.2%}",
            f"{training.seconds:.1f}",
        )
    return table


def draw(comparison: Comparison, path: Path) -> None:
    """Draw the loss curves, their distances, and the test accuracy."""
    figure = Figure(figsize=FIGURE_INCHES, dpi=FIGURE_DPI, layout="constrained")
    figure.suptitle(f"Learning 8×8 digits with {comparison.variant.name}, fused and reference", fontsize=18)
    losses, errors, accuracies = figure.subplots(1, 3)
    _draw_trainings(losses, {name: training.losses for name, training in comparison.trainings().items()})
    losses.set(title="Training loss", xlabel="step", ylabel="cross entropy")
    _draw_errors(errors, comparison)
    percent = {name: 100 * torch.tensor(training.accuracies) for name, training in comparison.trainings().items()}
    _draw_trainings(accuracies, percent)
    accuracies.set(title="Test accuracy", xlabel="epoch", ylabel="correct, %")
    for axes in (losses, errors, accuracies):
        axes.grid(alpha=0.3)
        axes.legend()
    errors.legend(loc="lower left", ncols=2)
    figure.savefig(path)


def _draw_trainings(axes: Axes, curves: dict[str, Tensor]) -> None:
    for (name, curve), (color, width) in zip(reversed(curves.items()), STYLES, strict=True):
        axes.plot(range(1, len(curve) + 1), curve, color=color, linewidth=width, label=name)


def _draw_errors(axes: Axes, comparison: Comparison) -> None:
    fused, reference, exact = (training.losses.double() for training in comparison.trainings().values())
    steps = range(1, len(exact) + 1)
    distances = {
        "|reference − float64|": ((reference - exact).abs(), "tab:orange"),
        "|fused − float64|": ((fused - exact).abs(), "tab:green"),
        "|fused − reference|": ((fused - reference).abs(), "tab:blue"),
    }
    axes.plot(steps, comparison.budgets(), color="tab:red", label="budget of |fused − float64|")
    for name, (distance, color) in distances.items():
        axes.plot(steps, distance, ".", color=color, markersize=4, label=name)
    axes.set_yscale("log")
    axes.margins(y=0.2)
    axes.set(title="Distance between loss curves (0 is not shown)", xlabel="step", ylabel="difference of losses")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the example: 0 when the loss curve is within its error budget, 1 when it is not."""
    variants = {variant.name: variant for variant in VARIANTS}
    parser = make_parser(__doc__, output="digits.png", threads=1)
    parser.add_argument("--epochs", type=at_least(1), default=8, help="(default: %(default)s)")
    parser.add_argument("--variant", choices=variants, default="eca", help="the attention (default: %(default)s)")
    parser.add_argument("--samples", type=at_least(100), default=1797, help="digits to use (default: all %(default)s)")
    arguments = parser.parse_args(argv)
    configure_torch(arguments.threads)
    console = Console()
    variant = variants[arguments.variant]
    comparison = compare(variant, arguments.epochs, arguments.seed, arguments.samples, arguments.device)
    console.print(make_table(comparison))
    draw(comparison, arguments.output)
    try:
        used = comparison.used_budget()
    except AssertionError as failure:
        console.print(f"Not within budget: {failure}", style="red", markup=False)
        return 1
    console.print(f"The fused loss curve is within its error budget at every step ({used:.1%} used).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
