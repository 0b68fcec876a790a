# SPDX-License-Identifier: MIT
"""Compiled code notices changes to a converted module, made before and after compilation."""

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from eca_cuda import convert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x

TAU = 1.0


class ECA(nn.Module):
    tau = 1.0

    def __init__(self):
        super().__init__()
        self.pool, self.post = nn.AdaptiveAvgPool2d(1), nn.ModuleList()
        self.tail = nn.Sequential(nn.Identity(), nn.Sigmoid())
        self.same = self.tail[1]
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.register_buffer("mask", None)
        self.drop = nn.Identity()
        self.drop = None

    def logits(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x).squeeze(-1).transpose(1, 2)).transpose(1, 2).unsqueeze(-1) / TAU / self.tau

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.tail(self.logits(x))
        for m in self.post:
            y = m(y)
        if self.mask is not None:
            y = y * self.mask
        if self.drop is not None:
            y = self.drop(y)
        return y


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.extras = nn.Conv2d(16, 16, 1), nn.ModuleList([ECA()])

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for m in self.extras:
            y = m(y)
        return torch.relu(y + x)


def child(m: nn.Module) -> nn.Module:
    return m.extras[0] if isinstance(m, Block) else m


# changes of the module itself
CHANGES = {
    "a longer sequential": lambda m: child(m).tail.append(nn.Tanh()),
    "an empty list grows": lambda m: child(m).post.append(nn.Tanh()),
    "a buffer is set": lambda m: setattr(child(m), "mask", torch.full((1,), 3.0)),
    "a missing child is set": lambda m: setattr(child(m), "drop", nn.Tanh()),
    "an alias": lambda m: setattr(child(m), "same", nn.Sigmoid()),
    "a method on the instance": lambda m: setattr(child(m), "logits", lambda x: x.mean((2, 3), keepdim=True)),
    "a forward inside": lambda m: setattr(child(m).tail[1], "forward", torch.tanh),
    "an attribute": lambda m: setattr(child(m), "tau", 5.0),
    "another class inside": lambda m: setattr(child(m).tail, "1", nn.Hardsigmoid()),
}
# changes of its class and globals, not all of which are noticed after compilation
WIDER = {
    "a global": lambda patch: patch.setattr(sys.modules[__name__], "TAU", 5.0),
    "an attribute of the class": lambda patch: patch.setattr(ECA, "tau", 5.0),
    "a method of the class": lambda patch: patch.setattr(ECA, "logits", lambda self, x: x.mean((2, 3), keepdim=True)),
    "the forward of the class": lambda patch: patch.setattr(ECA, "forward", lambda self, x: 3 * x),
    "the code of a method": lambda patch: patch.setattr(ECA.logits, "__code__", (lambda self, x: 3 * x).__code__),
}


def pair(make: type[nn.Module]) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = make().eval().requires_grad_(False)
    converted = convert(copy.deepcopy(plain), fuse_residual=True)
    assert isinstance(converted, FusedAttention if make is ECA else FusedBlock)
    return plain, converted, make_x((2, 16, 5, 6))


@pytest.mark.parametrize("make", [ECA, Block])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_change_of_the_module_is_noticed(make, change, when):
    plain, converted, x = pair(make)
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    if when == "after":
        torch.testing.assert_close(compiled(x), plain(x))
    for m in (plain, converted):
        change(m)
    torch.testing.assert_close(compiled(x), plain(x))


@pytest.mark.parametrize("make", [ECA, Block])
@pytest.mark.parametrize("change", WIDER.values(), ids=WIDER)
def test_a_change_of_class_or_globals_before_compilation_is_noticed(make, change, monkeypatch):
    plain, converted, x = pair(make)
    change(monkeypatch)
    torch.testing.assert_close(torch.compile(converted, backend="eager", fullgraph=True)(x), plain(x))


def test_each_module_is_checked_separately():
    plain, converted, x = pair(ECA)
    model = nn.Sequential(converted, copy.deepcopy(converted), nn.ReLU())
    model[0].post.append(nn.Tanh())
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.relu(plain(plain(x).tanh())))


def test_an_instance_made_by_its_class_compiles():
    _, converted, x = pair(ECA)
    other = type(converted)().eval()
    assert torch.equal(torch.compile(other, backend="eager", fullgraph=True)(x), other(x))
