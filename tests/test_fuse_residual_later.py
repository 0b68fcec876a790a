# SPDX-License-Identifier: MIT
"""What is done to a fused block, or to what its forward reads, after ``convert`` acts as on any other block."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eca_cuda import conversion_report, convert, revert
from eca_cuda.blocks import FusedBlock
from eca_cuda.testing import make_x

pytest.importorskip("timm")
from test_fuse_residual import FUSED, C, Official, in_torchvision, randomized

GAIN = 1.0


class Scaled(Official):
    """Its forward reads an attribute, a setting and a global."""

    def __init__(self):
        super().__init__()
        self.gain, self.settings = 1.0, {"skip": False}

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x)) * self.gain * GAIN
        if self.settings["skip"]:
            return x
        return self.relu(self.eca(out) + x)


def replaced(path: str, module: nn.Module) -> Callable:
    return lambda block, seen: block.set_submodule(path, module)


def hooked(path: str) -> Callable:
    def change(block: nn.Module, seen: list[Tensor]) -> None:
        block.get_submodule(path).register_forward_hook(lambda _, inputs, y: seen.extend([*inputs, y]))

    return change


def set_gain(block: nn.Module, seen: list[Tensor]) -> None:
    block.gain = 3.0


def skip(block: nn.Module, seen: list[Tensor]) -> None:
    block.settings["skip"] = True


LATER = {
    "an attribute": (Scaled, set_gain),
    "a setting in a dict": (Scaled, skip),
    "a convolution replaced": (Scaled, replaced("conv1", nn.Conv2d(C, C, 1).double())),
    "attention replaced": (Official, replaced("eca", nn.Identity())),
    "attention reverted": (Official, lambda block, seen: revert(block.eca)),
    "ReLU replaced": (FUSED["timm BasicBlock"], replaced("act2", nn.SiLU())),
    "hook on the attention": (Official, hooked("eca")),
    "hook on the ReLU": (FUSED["timm BasicBlock"], hooked("act2")),
    "hook around the attention": (in_torchvision, hooked("bn2")),
}


@pytest.mark.parametrize("make, change", LATER.values(), ids=LATER)
def test_what_is_done_to_a_fused_block_later_acts_as_on_any_other(make, change):
    block, x = randomized(make()).double().eval(), make_x((2, C, 5, 5), torch.float64)
    fused, results = convert(copy.deepcopy(block), fuse_residual=True), []
    for m in (block, fused):
        seen: list[Tensor] = []
        change(m, seen)
        results.append([m(x), *seen])
    torch.testing.assert_close(*results)


def test_a_global_that_it_read_acts_and_the_report_says_so(monkeypatch):
    block, x = randomized(Scaled()).eval(), make_x((2, C, 5, 5))
    fused = convert(copy.deepcopy(block), fuse_residual=True)
    torch.testing.assert_close(fused(x), block(x))
    monkeypatch.setattr(__import__(__name__), "GAIN", 2.0)
    assert torch.equal(fused.eca(x), fused.eca(x))
    torch.testing.assert_close(fused(x), block(x))
    assert "GAIN is 2.0" in conversion_report(fused).residual[0].detail


def test_a_block_patched_later_acts(monkeypatch):
    block, x = convert(Scaled(), fuse_residual=True), make_x((2, C, 5, 5))
    assert isinstance(block, FusedBlock)
    monkeypatch.setattr(Scaled, "forward", lambda self, x: 3 * x)
    assert torch.equal(block(x), 3 * x)


class ReadsAnObject(Scaled):
    def __init__(self):
        super().__init__()
        self.settings = {"skip": object()}


def test_what_cannot_be_compared_later_is_a_reason():
    (finding,) = conversion_report(ReadsAnObject()).residual
    assert finding.status == "left alone" and "reads settings, a dict" in finding.detail


def test_a_convolution_replaced_later_leaves_the_block_fused():
    block = convert(Scaled(), fuse_residual=True)
    block.conv1 = nn.Conv2d(C, C, 1)
    assert conversion_report(block).residual[0].status == "fused"
