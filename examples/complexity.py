# SPDX-License-Identifier: MIT
"""Recomputes what the ECA paper claims for ResNet-50: 24.37 M parameters, 3.86 GFLOPs, ECA adds 80 and 4.7e-4.

The paper (arXiv 1910.03151, table 3) does not say how it counts. Its numbers follow from these rules:

- Its M and G are 2^20 and 2^30: ResNet-50 has 25,557,032 parameters = 24.37 * 2^20.
- 3.86 GFLOPs follows from the rule of THOP (github.com/Lyken17/pytorch-OpCounter, f66cec4 of June 2019): one per
  multiply-add of a convolution, ``2 in - 1`` per output of a linear layer, 4 per element of a batch norm, 1 per element
  of a ReLU. (Its counts for pooling change the result by 0.02 % and are left out.) Convolutions and the linear layer
  alone have 4.09 * 10^9 = 3.81 * 2^30 multiply-adds.
- 80 parameters are kernel sizes 3, 5, 5, 7 in the four stages; the published formula gives 5, 5, 5, 7 and so 86.
- We found no rule that gives 4.7e-4 GFLOPs. The sixteen 1-D convolutions have 86,272 multiply-adds = 8.0e-5 * 2^30,
  5.8 times fewer; kernels of k x k would have 4.78e-4. Neither number includes pooling or rescaling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from eca_cuda import EfficientChannelAttention

MI, GI = 2**20, 2**30
RELEASED_KERNEL_SIZES = (3, 5, 5, 7)

# The operations of one call of a module with output y, by THOP's rule.
_THOP: dict[type[nn.Module], Callable[[Any, Tensor], int]] = {
    nn.Conv2d: lambda conv, y: y.numel() * conv.weight[0].numel(),
    nn.Linear: lambda linear, y: y.numel() * (2 * linear.in_features - 1),
    nn.BatchNorm2d: lambda norm, y: y.numel() * 4,
    nn.ReLU: lambda relu, y: y.numel(),
}


@dataclass(frozen=True)
class Complexity:
    """Counts for one 224x224 image; ``macs`` are multiply-adds of convolutions and linear layers only."""

    backbone_parameters: int
    backbone_macs: int
    backbone_thop: int
    eca_parameters: int
    eca_parameters_by_formula: int
    eca_macs: int
    eca_macs_of_square_kernels: int


def eca_resnet50(kernel_sizes: Sequence[int] | None = None) -> nn.Module:
    """torchvision's ResNet-50 with ECA after bn3 of every block; ``kernel_sizes`` per stage, else the formula's."""
    model: nn.Module = torchvision.models.resnet50()
    for name, block in model.named_modules():
        if isinstance(block, Bottleneck):
            stage = int(name.removeprefix("layer").partition(".")[0])
            k = None if kernel_sizes is None else kernel_sizes[stage - 1]
            block.bn3 = nn.Sequential(block.bn3, EfficientChannelAttention(block.bn3.num_features, kernel_size=k))
    return model


def measure() -> Complexity:
    """Count everything on real models; takes a second or two."""
    backbone, released, published = torchvision.models.resnet50(), eca_resnet50(RELEASED_KERNEL_SIZES), eca_resnet50()
    with FlopCounterMode(display=False) as counter:
        thop = _count(backbone, _THOP)
    attention = [module for module in released.modules() if isinstance(module, EfficientChannelAttention)]
    sizes = [(module.channels, module.conv1.kernel_size[0]) for module in attention]
    return Complexity(
        backbone_parameters=parameters(backbone),
        backbone_macs=counter.get_total_flops() // 2,
        backbone_thop=thop,
        eca_parameters=parameters(released) - parameters(backbone),
        eca_parameters_by_formula=parameters(published) - parameters(backbone),
        eca_macs=sum(c * k for c, k in sizes),
        eca_macs_of_square_kernels=sum(c * k * k for c, k in sizes),
    )


def parameters(model: nn.Module) -> int:
    """The number of parameters of ``model``."""
    return sum(parameter.numel() for parameter in model.parameters())


def table(found: Complexity) -> Table:
    """The paper's numbers next to ours."""
    lines = [
        ["backbone parameters", "24.37 M", f"{found.backbone_parameters / MI:.2f} M", "M = 2^20"],
        ["backbone FLOPs", "3.86 G", f"{found.backbone_thop / GI:.2f} G", "THOP's rule of 2019, G = 2^30"],
        ["", "", f"{found.backbone_macs / GI:.2f} G", "multiply-adds only, G = 2^30"],
        ["", "", f"{found.backbone_macs / 1e9:.2f} G", "multiply-adds only, G = 10^9"],
        ["parameters added by ECA", "80", str(found.eca_parameters), "kernel sizes 3, 5, 5, 7"],
        ["", "", str(found.eca_parameters_by_formula), "kernel sizes by the published formula"],
        [
            "FLOPs added by ECA",
            "4.7e-4 G",
            f"{found.eca_macs / GI:.1e} G",
            "multiply-adds, G = 2^30; differs from the paper",
        ],
        [
            "",
            "",
            f"{found.eca_macs_of_square_kernels / GI:.2e} G",
            "with kernels of k x k, G = 2^30; close to the paper",
        ],
    ]
    made = Table("quantity", "paper", "here", "how counted", title="ECA-ResNet-50 at 224x224")
    for line in lines:
        made.add_row(*line)
    return made


def _count(model: nn.Module, rule: dict[type[nn.Module], Callable[[Any, Tensor], int]]) -> int:
    """Operations of one 224x224 image through ``model`` by ``rule``."""
    total = 0

    def hook(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        total += rule[type(module)](module, y)

    for module in model.modules():
        if type(module) in rule:
            module.register_forward_hook(hook)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    return total


if __name__ == "__main__":
    Console().print(table(measure()))
