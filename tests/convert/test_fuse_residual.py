# SPDX-License-Identifier: MIT
"""``convert(model, fuse_residual=True)``: blocks where the shortcut is added in the same pass, and those left alone."""

import copy
import operator
import pickle
import random
from collections.abc import Callable

import numpy
import pytest
import torch
import torch.nn.functional as F
from lookalikes import eca_layer
from torch import Tensor, nn

import eca_cuda
from eca_cuda import conversion_report, convert, revert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.testing import make_x, used_budget
from eca_cuda.variants import eca as file_of_eca

pytest.importorskip("timm")
from timm.layers import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torchvision.models import resnet
from torchvision.ops import StochasticDepth

C = 16


class Official(nn.Module):
    """ECABasicBlock of the official ECANet (models/eca_resnet.py)."""

    def __init__(self, downsample: bool = False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.eca = eca_layer(C, 3)
        self.downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)) if downsample else None

    def forward(self, x):
        residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.eca(out)
        if self.downsample is not None:
            residual = self.downsample(x)
        out += residual
        return self.relu(out)


def in_torchvision() -> nn.Module:
    """torchvision's block with attention after bn2, inside an ``nn.Sequential``."""
    block = resnet.BasicBlock(C, C)
    block.bn2 = nn.Sequential(block.bn2, eca_layer(C))
    return block


class Custom(nn.Module):
    """``tail`` decides what follows the attention."""

    def __init__(self, tail: Callable, **children: nn.Module):
        super().__init__()
        self.conv, self.eca, self.tail = nn.Conv2d(C, C, 1), eca_layer(C), tail
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.tail(self, self.conv(x), x)


def own_layer() -> nn.Module:
    block = Official()
    block.eca = eca_cuda.EfficientChannelAttention(C)
    return block


FUSED = {
    "timm BasicBlock": lambda: BasicBlock(C, C, attn_layer="eca"),
    "timm Bottleneck": lambda: Bottleneck(C, C // 4, attn_layer="eca"),
    "timm Bottleneck, drop-path at 0": lambda: Bottleneck(C, C // 4, attn_layer="eca", drop_path=DropPath(0.0)),
    "official": Official,
    "official, downsample": lambda: Official(downsample=True),
    "torchvision": in_torchvision,
    "our layer": own_layer,
    "shortcut first": lambda: Custom(lambda m, y, x: F.relu(x + m.eca(y))),
    "torch.add, method relu": lambda: Custom(lambda m, y, x: torch.add(m.eca(y), x).relu_()),
    "another activation": lambda: Custom(lambda m, y, x: F.silu(m.eca(y) + x)),
    "no activation": lambda: Custom(lambda m, y, x: m.eca(y) + x),
    "sum used twice": lambda: Custom(lambda m, y, x: (lambda s: F.relu(s) * s)(m.eca(y) + x)),
    "stochastic depth at 0": lambda: Custom(
        lambda m, y, x: F.relu(m.drop(m.eca(y)) + x), drop=StochasticDepth(0.0, "row")
    ),
    "aliases": lambda: Custom(lambda m, y, x: (lambda a, b: F.relu(m.eca(a) + x) + b)(operator.iadd(y, x), y)),
    "broadcast shortcut": lambda: Custom(lambda m, y, x: F.relu(m.eca(y) + x.mean((2, 3), keepdim=True))),
}
every_block = pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)


def randomized(block: nn.Module) -> nn.Module:
    """Sets random statistics and gains, as timm starts gains at zero, which would hide the branch."""
    with torch.no_grad():
        for m in block.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.uniform_(0.5, 1.5), m.bias.normal_(), m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
    return block


def results(block: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = block(x * 1)  # not a leaf, as a block may change its input in place
    names = ["grad_x", *(name for name, _ in block.named_parameters())]
    grads = torch.autograd.grad(y, [x, *block.parameters()], make_x(y.shape, seed=2).to(y.dtype))
    return {"y": y.detach()} | dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("training", [True, False])
@every_block
def test_fused_blocks_are_exact_in_training_and_in_evaluation(make, training):
    block, x = randomized(make()).train(training), make_x((4, C, 7, 9))
    exact, eager = results(copy.deepcopy(block).double(), x.double()), results(copy.deepcopy(block), x)
    fused = convert(copy.deepcopy(block), fuse_residual=True)
    assert isinstance(fused, FusedBlock)
    for name, ours in results(fused, x).items():
        scale = float(exact[name].abs().max())
        used_budget(name, ours, eager[name], exact[name], terms=x.numel(), scale=scale)


@every_block
def test_fused_blocks_call_the_operator_with_the_residual(make, monkeypatch):
    block, x, calls = randomized(make()).eval(), make_x((2, C, 5, 5)), []
    expected = block(x)
    convert(block, fuse_residual=True)
    original = eca_cuda.functional.eca
    for caller in (eca_cuda.functional, file_of_eca):  # a converted block, a layer of ours
        monkeypatch.setattr(caller, "eca", lambda *a, **k: calls.append(k) or original(*a, **k))
    y = block(x)
    (call,) = calls
    assert y.shape == expected.shape
    broadcast = make is FUSED["broadcast shortcut"]
    assert (call["residual"] is None) == broadcast
    other = ("another activation", "no activation", "sum used twice", "broadcast shortcut")
    assert call["activation"] == (None if make in [FUSED[name] for name in other] else "relu")


def with_hook(block: nn.Module, name: str) -> nn.Module:
    block.get_submodule(name).register_forward_hook(lambda *_: None)
    return block


class SetsAttributes(Official):
    def forward(self, x):
        self.seen = x
        return super().forward(x)


class ReadsTraining(Official):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x) * 2


class InlineStochasticDepth(Official):
    def forward(self, x):
        return x if self.training and torch.rand(1).item() < 0.3 else super().forward(x)


class SometimesSkipped(Official):
    def forward(self, x):
        draws = torch.rand(1).item(), random.random(), numpy.random.rand()
        return x if max(draws) < 1e-9 else super().forward(x)


class OptionalShortcut(Official):
    def forward(self, x, shortcut=None):
        return super().forward(x if shortcut is None else x + shortcut)


class AnyArguments(Official):
    def forward(self, *args):
        return super().forward(*args)


class AsksForTypes(Official):
    def forward(self, x):
        return super().forward(x if isinstance(x, Tensor) else torch.cat(x, 1))


class WithoutGradients(Official):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class UnderAutocast(Official):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class CountsInABuffer(Official):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class CollectsInLists(Official):
    def __init__(self):
        super().__init__()
        self.seen = {"shapes": []}

    def forward(self, x):
        self.seen["shapes"].append(x.shape)
        return super().forward(x)


class Branches(Official):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def replaced_forward() -> nn.Module:
    block = Official()
    block.forward = lambda x: x
    return block


LEFT_ALONE = {
    "gain in between": (lambda: Custom(lambda m, y, x: F.relu(2 * m.eca(y) + x)), "goes to mul, not to an addition"),
    "used twice": (lambda: Custom(lambda m, y, x: (lambda a: F.relu(a + x) * a)(m.eca(y))), "has 2 users"),
    "added to itself": (lambda: Custom(lambda m, y, x: (lambda a: a + a)(m.eca(y))), "not added to another tensor"),
    "added to a number": (lambda: Custom(lambda m, y, x: m.eca(y) + 1), "not added to another tensor"),
    "alpha": (lambda: Custom(lambda m, y, x: torch.add(m.eca(y), x, alpha=2)), "not to an addition"),
    "in place into the shortcut": (
        lambda: Custom(lambda m, y, x: F.relu(x.add_(m.eca(y)))),
        "in place to the shortcut",
    ),
    "+= on the shortcut": (
        lambda: Custom(lambda m, y, x: F.relu(operator.iadd(x, m.eca(y)))),
        "in place to the shortcut",
    ),
    "input changed in between": (
        lambda: Custom(lambda m, y, x: (lambda a: F.relu(a + y.mul_(2)))(m.eca(y))),
        "used again before the addition",
    ),
    "alias of the input changed": (
        lambda: Custom(lambda m, y, x: (lambda v, a: F.relu(v.mul_(2) * 0 + a + x))(y.detach(), m.eca(y))),
        "mul_, between eca and what follows it, may change",
    ),
    "shortcut changed after the addition": (
        lambda: Custom(lambda m, y, x: (lambda sc: (m.eca(y) + sc, sc.zero_())[0])(x * 2).relu()),
        "zero_, between eca and what follows it, may change",
    ),
    "input changed by a module": (
        lambda: Custom(lambda m, y, x: (lambda v, a: a + m.act(v))(y.view(y.shape), m.eca(y)), act=nn.ReLU(True)),
        "act, between eca and what follows it, may change",
    ),
    "input changed by a function": (
        lambda: Custom(lambda m, y, x: (lambda v, a: a + F.silu(v, True))(y.view(y.shape), m.eca(y))),
        "silu, between eca and what follows it, may change",
    ),
    "input changed by an operator": (
        lambda: Custom(lambda m, y, x: (lambda v, a: a + operator.imul(v, x))(y.view(y.shape), m.eca(y))),
        "imul, between eca and what follows it, may change",
    ),
    "input overwritten": (
        lambda: Custom(lambda m, y, x: (lambda v, a: a + torch.mul(x, x, out=v))(y.view(y.shape), m.eca(y))),
        "mul, between eca and what follows it, may change",
    ),
    "called twice": (lambda: Custom(lambda m, y, x: F.relu(m.eca(m.eca(y)) + x)), "not called once"),
    "hook on the attention": (lambda: with_hook(Official(), "eca"), "eca has hooks"),
    "hook on the activation": (lambda: with_hook(Official(), "relu"), "relu has hooks"),
    "sets attributes": (SetsAttributes, "sets attributes"),
    "counts in a buffer": (CountsInABuffer, "sets attributes: calls"),
    "collects in lists": (CollectsInLists, "sets attributes"),
    "reads training": (ReadsTraining, "reads self.training"),
    "stochastic depth in its forward": (InlineStochasticDepth, "uses torch.rand"),
    "draws": (SometimesSkipped, "uses torch.rand"),
    "an optional argument": (OptionalShortcut, "has optional arguments"),
    "any arguments": (AnyArguments, "has optional arguments"),
    "without gradients": (WithoutGradients, "switches gradients or autocast"),
    "under autocast": (UnderAutocast, "switches gradients or autocast"),
    "asks for types": (AsksForTypes, "uses isinstance"),
    "branches on data": (Branches, "torch.fx cannot trace"),
    "replaced forward": (replaced_forward, "on the instance"),
}


@pytest.mark.parametrize("make, reason", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_blocks_are_left_alone_where_it_is_not_safe(make, reason):
    block = make()
    kind = type(block)
    convert(block, fuse_residual=True)
    assert type(block) is kind
    (finding,) = conversion_report(block).residual
    assert finding.status == "left alone" and reason in finding.detail


@pytest.mark.parametrize("kind", [CountsInABuffer, CollectsInLists, SometimesSkipped])
def test_tracing_a_block_leaves_nothing_behind(kind):
    def state() -> tuple:
        _, keys, position, *_ = numpy.random.get_state()
        generators = torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), position
        return int(getattr(block, "calls", 0)), copy.deepcopy(getattr(block, "seen", None)), generators

    block = kind()
    before = state()
    conversion_report(block)
    assert state() == before


def test_an_active_drop_path_runs_the_blocks_own_forward():
    block = convert(Bottleneck(C, C // 4, attn_layer="eca", drop_path=DropPath(0.5)), fuse_residual=True)
    plain = revert(copy.deepcopy(block))
    randomized(plain.double()), block.double().load_state_dict(plain.state_dict())
    x = make_x((64, C, 3, 3), torch.float64)
    for training in (True, False):
        outputs = []
        for m in (block, plain):
            torch.manual_seed(1)
            outputs.append(m.train(training)(x))
        torch.testing.assert_close(*outputs)
    dropped = torch.nn.functional.relu(x)
    torch.manual_seed(1)
    kept = [not torch.equal(a, b) for a, b in zip(block.train()(x), dropped, strict=True)]
    assert 0 < sum(kept) < len(kept), "the drop-path must drop some samples and keep others"


@every_block
def test_nothing_but_the_forward_changes_and_revert_is_exact(make):
    block = make()
    keys, kind, attributes = list(block.state_dict()), type(block), dict(vars(block))
    modules, parameters = dict(block.named_modules()), dict(block.named_parameters())
    convert(block)
    assert type(block) is kind, "only with fuse_residual"
    once = type(convert(block, fuse_residual=True))
    assert type(convert(block, fuse_residual=True)) is once and type(convert(block)) is once
    assert isinstance(block, kind) and list(block.state_dict()) == keys
    assert dict(block.named_modules()) == modules
    assert all(p is parameters[name] for name, p in block.named_parameters())
    revert(block)
    assert type(block) is kind and vars(block) == attributes


@pytest.mark.parametrize("make", [Official, FUSED["timm Bottleneck, drop-path at 0"], in_torchvision])
def test_copies_and_pickles_stay_fused(make):
    block, x = convert(randomized(make()), fuse_residual=True).eval(), make_x((2, C, 5, 5))
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert type(other) is type(block)
        assert torch.equal(other(x), block(x))


def test_mixed_dtypes_under_autocast_promote_as_eager_does():
    block = Official().eval()
    x = make_x((2, C, 5, 5))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        expected = block(x)
        y = convert(block, fuse_residual=True)(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected)


def test_equal_blocks_share_their_code_so_that_the_compiler_sees_one():
    first, second = (convert(Official(), fuse_residual=True) for _ in range(2))
    assert type(first) is type(second)
