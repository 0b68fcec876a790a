# SPDX-License-Identifier: MIT
"""Changes to a fused block, or to what its forward reads, take effect after ``convert``."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eca_cuda import conversion, conversion_report, convert, revert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.testing import make_x

pytest.importorskip("timm")
from test_fuse_residual import FUSED, C, Official, in_torchvision, randomized
from test_fuse_residual_kinds import AddsANumber, Block, X, same

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
def test_a_later_change_of_a_fused_block_takes_effect(make, change):
    block, x = randomized(make()).double().eval(), make_x((2, C, 5, 5), torch.float64)
    fused, results = convert(copy.deepcopy(block), fuse_residual=True), []
    for m in (block, fused):
        seen: list[Tensor] = []
        change(m, seen)
        results.append([m(x), *seen])
    torch.testing.assert_close(*results)


def test_a_later_change_of_a_global_takes_effect_and_the_report_says_so(monkeypatch):
    block, x = randomized(Scaled()).eval(), make_x((2, C, 5, 5))
    fused = convert(copy.deepcopy(block), fuse_residual=True)
    torch.testing.assert_close(fused(x), block(x))
    monkeypatch.setattr(__import__(__name__), "GAIN", 2.0)
    assert torch.equal(fused.eca(x), fused.eca(x))
    torch.testing.assert_close(fused(x), block(x))
    assert "GAIN is 2.0" in conversion_report(fused).residual[0].detail


def test_a_later_patch_of_a_block_takes_effect(monkeypatch):
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


class Iterates(Block):
    def forward(self, x):
        y = x
        for layer in self.body:
            y = layer(y)
        return self.relu(self.eca(y) + x)


class IteratesChildren(Block):
    def forward(self, x):
        y = x
        for layer in self.body.children():
            y = layer(y)
        return self.relu(self.eca(y) + x)


class Counts(Block):
    def forward(self, x):
        return x if len(self.body) > 1 else self.relu(self.eca(self.conv(x)) + x)


class OwnList(nn.ModuleList):
    pass


class Inside(Block):
    def __init__(self):
        super().__init__()
        self.conv, self.eca = nn.Sequential(self.conv, self.eca), None

    def forward(self, x):
        return self.relu(self.conv(x) + x)


class MayHaveANorm(nn.Module):
    def __init__(self, norm: Any):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)
        self.register_module("norm", norm)


class Reaches(Block):
    def forward(self, x):
        y = self.body.conv(x)
        if self.body.norm is not None:
            y = self.body.norm(y)
        return self.relu(self.eca(y) + x)


class HasPlaces(Block):
    def __init__(self):
        super().__init__()
        self.register_parameter("gain", None)
        self.register_buffer("mask", None)

    def forward(self, x):
        y = self.conv(x)
        if self.gain is not None:
            y = y * self.gain
        if self.mask is not None:
            y = y * self.mask
        return self.relu(self.eca(y) + x)


class HasAGain(Block):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        y = self.conv(x)
        if self.gain is not None:
            y = y * self.gain
        return self.relu(self.eca(y) + x)


class AsksForABias(Block):
    def forward(self, x):
        y = self.conv(x)
        return self.relu(self.eca(y * 2 if self.conv.bias is not None else y) + x)


class Scales(Block):
    def forward(self, x):
        y = self.conv(x)
        for scale in self.scales:
            y = y * scale
        return self.relu(self.eca(y) + x)


class CallsForward(Block):
    def forward(self, x):
        return super().forward(self.gate.forward(x))


class TwoNames(Block):
    def __init__(self):
        super().__init__()
        self.act, self.conv2 = self.relu, self.conv

    def forward(self, x):
        return self.act(self.eca(self.conv2(self.relu(self.conv(x)))) + x)


def append(name: str) -> Callable:
    return lambda block: getattr(block, name).append(nn.Tanh())


def put(path: str, value: Any) -> Callable:
    owner, _, name = path.rpartition(".")
    return lambda block: setattr(block.get_submodule(owner), name, copy.deepcopy(value))


def with_a_function(block: nn.Module) -> None:
    del block.relu
    block.relu = torch.tanh


def bodied(kind: type, *layers: nn.Module) -> Callable:
    return lambda: Iterates(body=kind(layers) if kind is not nn.Sequential else kind(*layers))


CHANGED = {
    "appended around the attention": (Inside, append("conv")),
    "inserted around the attention": (Inside, lambda block: block.conv.insert(1, nn.Tanh())),
    "popped around the attention": (Inside, lambda block: block.conv.pop(0) and None),
    "appended to an iterated Sequential": (bodied(nn.Sequential, nn.Conv2d(C, C, 1)), append("body")),
    "appended to an empty Sequential": (bodied(nn.Sequential), append("body")),
    "appended to a list of one's own": (bodied(OwnList, nn.Conv2d(C, C, 1)), append("body")),
    "appended to an empty list": (bodied(OwnList), append("body")),
    "appended to children": (lambda: IteratesChildren(body=nn.Sequential(nn.Conv2d(C, C, 1))), append("body")),
    "length": (lambda: Counts(body=nn.Sequential(nn.Tanh())), append("body")),
    "length of nothing": (lambda: Counts(body=nn.Sequential()), lambda block: [append("body")(block)] * 2),
    "a child of a child set": (lambda: Reaches(body=MayHaveANorm(None)), put("body.norm", nn.Tanh())),
    "a child of a child removed": (lambda: Reaches(body=MayHaveANorm(nn.Tanh())), put("body.norm", None)),
    "a parameter set": (HasPlaces, put("gain", nn.Parameter(torch.full((1,), 3.0)))),
    "a buffer set": (HasPlaces, put("mask", torch.zeros(1))),
    "a parameter removed": (HasAGain, put("gain", None)),
    "a bias set": (
        lambda: AsksForABias(conv=nn.Conv2d(C, C, 1, bias=False)),
        put("conv.bias", nn.Parameter(torch.ones(C))),
    ),
    "a bias removed": (AsksForABias, put("conv.bias", None)),
    "a parameter appended": (
        lambda: Scales(scales=nn.ParameterList()),
        lambda block: block.scales.append(nn.Parameter(torch.zeros(1))) and None,
    ),
    "a module whose forward it calls": (lambda: CallsForward(gate=nn.Sigmoid()), put("gate", nn.Tanh())),
    "one of two names of a ReLU": (TwoNames, put("act", nn.Tanh())),
    "the other name of it": (TwoNames, put("relu", nn.Tanh())),
    "one of two names of a convolution": (TwoNames, put("conv2", nn.Conv2d(C, C, 1))),
    "timm's attention removed": (FUSED["timm Bottleneck"], put("se", None)),
    "attention removed": (Block, put("eca", None)),
    "ReLU replaced by a function": (Block, with_a_function),
    "shortcut made to change its input": (
        lambda: AddsANumber(number=nn.ReLU()),
        lambda block: setattr(block.number, "inplace", True),
    ),
}


@pytest.mark.parametrize("make, change", CHANGED.values(), ids=CHANGED)
def test_a_later_change_of_structure_takes_effect_and_converting_again_is_right(make, change):
    block = randomized(make()).double().eval()
    fused = convert(copy.deepcopy(block), fuse_residual=True)
    assert isinstance(fused, FusedBlock)
    same(fused, block, X.double())
    change(block), change(fused)
    assert len(conversion_report(fused).residual) == 1
    same(fused, block, X.double())
    same(convert(copy.deepcopy(fused), fuse_residual=True), block, X.double())
    revert(fused)
    assert type(fused) is type(block)


def test_converting_again_uses_the_current_state():
    block = convert(HasPlaces(), fuse_residual=True)
    first = type(block)
    block.gain = nn.Parameter(torch.ones(1))
    (finding,) = conversion_report(block).residual
    assert finding.status == "could be fused" and "its own forward runs because" in finding.detail
    convert(block, fuse_residual=True)
    assert conversion_report(block).residual[0].status == "fused" and type(block) is not first
    assert type(revert(block)) is HasPlaces


def test_an_interrupt_in_the_middle_leaves_the_model_as_it_was(monkeypatch):
    model = nn.Sequential(Block(), Block())
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    original = conversion.swap

    def interrupted(module: nn.Module, *args: Any) -> None:
        original(module, *args)
        if module is model[-1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(model, fuse_residual=True)
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before
