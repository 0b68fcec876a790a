# SPDX-License-Identifier: MIT
"""Blocks that torch.fx alone would get wrong: because of their arguments, branches or side effects."""

import copy
from typing import Any

import pytest
import torch
from lookalikes import eca_layer
from torch import Tensor, nn

from eca_cuda import conversion_report, convert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.testing import make_x

pytest.importorskip("timm")
from test_fuse_residual import C


class Block(nn.Module):
    def __init__(self, **children: Any):
        super().__init__()
        self.conv, self.eca, self.relu = nn.Conv2d(C, C, 1), eca_layer(C), nn.ReLU()
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.relu(self.eca(self.conv(x)) + x)


def same(a: nn.Module, b: nn.Module, *args: Any) -> None:
    """Assert that both return the same, or raise the same."""
    results = []
    for m in (a, b):
        try:
            results.append(m(*copy.deepcopy(args)))
        except Exception as error:
            results.append(error)
    first, second = results
    if isinstance(first, Exception):
        assert type(first) is type(second)
    else:
        torch.testing.assert_close(first, second)


# Arguments of a call


class TakesAShortcut(Block):
    def forward(self, x, skip):
        return self.relu(self.eca(self.conv(x)) + skip)


class TakesAnEmbedding(Block):
    def forward(self, x, embedding):
        y = self.conv(x)
        if embedding is not None:
            y = y + embedding
        return self.relu(self.eca(y) + x)


class TakesADict(Block):
    def forward(self, x, options):
        return self.relu(self.eca(self.conv(x) * options["gain"]) + x)


class AsksForIdentity(Block):
    def forward(self, x, skip):
        y = self.conv(x)
        return self.relu(self.eca(y * 2 if skip is x else y) + skip)


class Sometimes(nn.Module):
    def forward(self, x):
        return None


class AsksWhatAChildReturned(Block):
    def forward(self, x):
        extra = self.extra(x)
        return self.relu(self.eca(self.conv(x) if extra is None else extra) + x)


class AddsANumber(Block):
    def forward(self, x):
        return self.relu(self.eca(self.conv(x)) + self.number(x))


class Half(nn.Module):
    def forward(self, x):
        return 0.5


X = make_x((2, C, 5, 5))
GIVEN = {
    "a tensor": (TakesAShortcut, (X, X * 2)),
    "0": (TakesAShortcut, (X, 0)),
    "None": (TakesAShortcut, (X, None)),
    "no embedding": (TakesAnEmbedding, (X, None)),
    "an embedding": (TakesAnEmbedding, (X, X)),
    "a dict": (TakesADict, (X, {"gain": 3.0})),
    "the same tensor twice": (AsksForIdentity, (X, X)),
    "None from a child": (lambda: AsksWhatAChildReturned(extra=Sometimes()), (X,)),
    "a number from a child": (lambda: AddsANumber(number=Half()), (X,)),
}


@pytest.mark.parametrize("make, args", GIVEN.values(), ids=GIVEN)
def test_the_arguments_of_a_block_matter_as_before(make, args):
    block = make()
    same(convert(copy.deepcopy(block), fuse_residual=True), block, *args)


def test_a_block_with_two_tensors_is_fused():
    assert isinstance(convert(TakesAShortcut(), fuse_residual=True), FusedBlock)


# Modes of torch


class PartlyWithoutAutocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            y = self.eca(self.conv(x.float()))
        return self.relu(y + x)


class WithoutCudasAutocast(Block):
    @torch.autocast("cuda", enabled=False)
    def forward(self, x):
        return super().forward(x)


class WithCastInputs(Block):
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(self, x):
        return super().forward(x)


class AlwaysWithGradients(Block):
    @torch.enable_grad()
    def forward(self, x):
        return super().forward(x)


class SetsGradientsOn(Block):
    @torch.set_grad_enabled(True)
    def forward(self, x):
        return super().forward(x)


class WithFlags(Block):
    @torch.backends.cudnn.flags(enabled=False)
    def forward(self, x):
        return super().forward(x)


def called_before() -> nn.Module:
    block = WithCastInputs()
    block(X)  # custom_fwd then leaves attributes
    return block


MODES = {
    "autocast off in a part": (PartlyWithoutAutocast, "switches gradients or autocast"),
    "CUDA's autocast off": (WithoutCudasAutocast, "switches gradients or autocast"),
    "custom_fwd": (called_before, "reads __class__"),
    "gradients on": (AlwaysWithGradients, "switches gradients or autocast"),
    "gradients set": (SetsGradientsOn, "switches gradients or autocast"),
    "flags of cuDNN": (WithFlags, "has a decorator from another package"),
}


@pytest.mark.parametrize("make, reason", MODES.values(), ids=MODES)
def test_a_block_that_switches_modes_is_left_alone(make, reason):
    block = make()
    (finding,) = conversion_report(block).residual
    assert finding.status == "left alone" and reason in finding.detail
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, expected = convert(copy.deepcopy(block), fuse_residual=True)(X), block(X)
    assert (y.dtype, y.requires_grad) == (expected.dtype, expected.requires_grad)


# What torch.fx does not notice


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.log, self.counts = [], {"calls": 0}


class LogsInAChild(Block):
    def forward(self, x):
        self.state.log.append(1)
        return super().forward(x)


class CountsInAChild(Block):
    def forward(self, x):
        self.state.counts["calls"] += 1
        return super().forward(x)


class LogsInItsClass(Block):
    log: list = []  # noqa: RUF012

    def forward(self, x):
        self.log.append(1)
        return super().forward(x)


class ClipsItsGain(Block):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x):
        self.gain.data.clamp_(max=1.0)
        return self.relu(self.eca(self.conv(x) * self.gain) + x)


STATE = {
    "a list of a child": (lambda: LogsInAChild(state=Keeps()), lambda block: len(block.state.log)),
    "a dict of a child": (lambda: CountsInAChild(state=Keeps()), lambda block: block.state.counts["calls"]),
    "a list of the class": (LogsInItsClass, lambda block: len(block.log)),
    "a parameter": (ClipsItsGain, lambda block: float(block.gain)),
}


@pytest.mark.parametrize("make, read", STATE.values(), ids=STATE)
def test_only_calls_change_what_a_forward_changes(make, read):
    block = make()
    plain, before = copy.deepcopy(block), read(block)
    conversion_report(block), convert(block, fuse_residual=True)
    assert read(block) == before
    same(block, plain, X)
    assert read(block) == read(plain) != before or make is LogsInItsClass


class DropPath(nn.Module):
    """Draws random numbers even at p = 0."""

    drop_prob = 0.0

    def forward(self, x):
        return x * (torch.rand(x.shape[0], 1, 1, 1) >= self.drop_prob) if self.training else x


class Drops(Block):
    def forward(self, x):
        return self.relu(self.drop(self.eca(self.conv(x))) + x)


class Doubles(nn.Module):
    def forward(self, x):
        return x.mul_(2)


class ChangesAnAlias(Block):
    def forward(self, x):
        y = self.eca(x.view_as(x))
        return self.relu(y + self.other(x))


class Tries(Block):
    def forward(self, x):
        y = self.eca(self.conv(x))
        try:
            return self.relu(y + x)
        except RuntimeError:
            return self.relu(y)


class Named(Block):
    def forward(self, x, *, skip):
        return self.relu(self.eca(self.conv(x)) + skip)


class LooksUpSizes(Block):
    gains = {C: 3.0}  # noqa: RUF012

    def forward(self, x):
        return super().forward(x * self.gains.get(x.shape[1], 1.0))


class LooksUpNames(Block):
    gains = {f"c{C}": 3.0}  # noqa: RUF012

    def forward(self, x):
        return super().forward(x * self.gains.get(f"c{x.shape[1]}", 1.0))


class CallsItself(nn.Module):
    def __call__(self, x):
        return x * 2


class ReadsAttention(Block):
    def forward(self, x):
        return super().forward(x * self.eca.conv.weight.sum())


ALONE = {
    "a drop-path of one's own": (lambda: Drops(drop=DropPath()), "goes to drop, not to an addition"),
    "a module of one's own in between": (
        lambda: ChangesAnAlias(other=Doubles()),
        "other, between eca and what follows",
    ),
    "a size looked up": (LooksUpSizes, "hashes or prints a value"),
    "a size looked up by name": (LooksUpNames, "hashes or prints a value"),
    "a call of one's own": (lambda: AddsANumber(number=CallsItself()), "number overrides __call__"),
    "an exception caught": (Tries, "catches exceptions"),
    "an argument by name": (Named, "keyword-only arguments"),
    "the inside of attention": (ReadsAttention, "does more with eca than call it"),
    "an embedding": (TakesAnEmbedding, "other than an attribute of self"),
    "an identity": (AsksForIdentity, "the same object"),
}


@pytest.mark.parametrize("make, reason", ALONE.values(), ids=ALONE)
def test_these_are_left_alone(make, reason):
    block = make()
    convert(block, fuse_residual=True)
    (finding,) = conversion_report(block).residual
    assert not isinstance(block, FusedBlock)
    assert finding.status == "left alone" and reason in finding.detail


class Annotated(Block):
    def forward(self, x: "Tensor") -> "Tensor":
        return super().forward(x)


class OfTheClass(Block):
    class Image(Tensor):
        pass

    def forward(self, x: Image) -> Image:
        return super().forward(x)


@pytest.mark.parametrize("kind", [Annotated, OfTheClass])
def test_annotations_do_not_matter(kind):
    block = kind()
    same(convert(copy.deepcopy(block), fuse_residual=True), block, X)
    assert isinstance(convert(block, fuse_residual=True), FusedBlock)


class Settings(dict):
    """A dict with its entries as attributes, and no others."""

    def __getattr__(self, name):
        return self[name]


class WithSettings(Block):
    settings = Settings(k=3)


def test_odd_attributes_of_a_class_do_not_matter():
    block = WithSettings()
    fused = convert(copy.deepcopy(block), fuse_residual=True)
    assert isinstance(fused, FusedBlock)
    same(fused, block, make_x((2, C, 5, 5)))
