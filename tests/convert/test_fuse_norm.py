# SPDX-License-Identifier: MIT
"""``convert(model, fuse_norm=True)``: blocks where batch norm and attention are one call, and those left alone."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lookalikes import eca_layer
from torch import Tensor, nn

import eca_cuda
from eca_cuda import conversion_report, convert, revert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.testing import make_x, used_budget

pytest.importorskip("timm")
import originals
from test_fuse_residual import C, Official, in_torchvision, own_layer, randomized, results
from timm.layers import BatchNormAct2d, DropPath
from timm.models.resnet import BasicBlock, Bottleneck, downsample_avg
from torchvision.ops import FrozenBatchNorm2d


class Block(nn.Module):
    """``tail`` decides what follows the convolution."""

    def __init__(self, tail: Callable, **children: Any):
        super().__init__()
        self.conv, self.bn, self.eca, self.tail = nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), eca_layer(C), tail
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self, self.conv(x), x)


def plain(m: Block, y: Tensor, x: Tensor) -> Tensor:
    return torch.relu(m.eca(m.bn(y)) + x)


def in_a_sequential(m: Block, y: Tensor, x: Tensor) -> Tensor:
    return torch.relu(m.eca(m.left(y)) + x)


def left() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C)))


def with_a_bias(**options: Any) -> nn.Module:
    return eca_cuda.EfficientChannelAttention(C, bias=True, **options)


FUSED = {
    "timm BasicBlock": lambda: BasicBlock(C, C, attn_layer="eca"),
    "timm Bottleneck": lambda: Bottleneck(C, C // 4, attn_layer="ceca"),
    "timm Bottleneck, drop-path at 0": lambda: Bottleneck(C, C // 4, attn_layer="eca", drop_path=DropPath(0.0)),
    "ResNet-D": lambda: Bottleneck(C, C // 4, attn_layer="eca", downsample=downsample_avg(C, C, 1)),
    "official": Official,
    "official, downsample": lambda: Official(downsample=True),
    "torchvision": in_torchvision,
    "our layer": own_layer,
    "our layer with options": lambda: Block(plain, eca=with_a_bias(padding_mode="circular", gate="hard_sigmoid")),
    "pre-activation": lambda: Block(lambda m, y, x: torch.relu(m.conv(m.eca(m.bn(x))) + m.eca2(m.bn2(y))), **second()),
    "two blocks in one": lambda: Block(lambda m, y, x: plain(m, y, x) + (m.eca2(m.bn2(y)) + x), **second()),
    "in a Sequential": lambda: Block(in_a_sequential, left=left(), bn=None),
    "the norm's input is the shortcut": lambda: Block(lambda m, y, x: m.eca(m.bn(y)) + y),
    "broadcast shortcut": lambda: Block(lambda m, y, x: torch.relu(m.eca(m.bn(y)) + x.mean((2, 3), keepdim=True))),
    "without weights": lambda: Block(plain, bn=nn.BatchNorm2d(C, affine=False)),
    "without running statistics": lambda: Block(plain, bn=nn.BatchNorm2d(C, track_running_stats=False)),
    "cumulative average": lambda: Block(plain, bn=nn.BatchNorm2d(C, momentum=None, eps=0.1)),
}
# Blocks where one attention is not followed by an addition, and blocks with two attentions.
WITHOUT_RESIDUAL, TWO = {"pre-activation"}, {"pre-activation", "two blocks in one"}
every_block = pytest.mark.parametrize("name", FUSED)
every_way = pytest.mark.parametrize("residual", [True, False])


def second() -> dict[str, nn.Module]:
    return {"eca2": eca_layer(C), "bn2": nn.BatchNorm2d(C)}


def prepared(block: nn.Module) -> nn.Module:
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            none = m.weight is None or m.running_mean is None
            m if none else randomized(m)
    return block


def fused(block: nn.Module, residual: bool = True) -> nn.Module:
    """A copy in which the attention's call includes the norm."""
    made = convert(copy.deepcopy(block), fuse_norm=True, fuse_residual=residual)
    assert isinstance(made, FusedBlock) and made._eca_cuda.found.norm
    return made


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    return recorded(monkeypatch)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Records the options of each call of ``batch_norm_eca`` that is not refused."""
    made, original = [], eca_cuda.functional.batch_norm_eca

    def called(*args: Any, **options: Any) -> Tensor:
        y = original(*args, **options)
        made.append(options)
        return y

    monkeypatch.setattr(eca_cuda.functional, "batch_norm_eca", called)
    return made


@every_way
@pytest.mark.parametrize("training", [True, False])
@every_block
def test_fused_blocks_are_exact_and_keep_the_same_statistics(name, training, residual, calls):
    block, x = prepared(FUSED[name]()).train(training), make_x((4, C, 7, 9))
    exact, eager, ours = copy.deepcopy(block).double(), copy.deepcopy(block), fused(block, residual)
    for step in range(2):
        expected, theirs = results(exact, x.double()), results(eager, x)
        for key, value in results(ours, x).items():
            scale = float(expected[key].abs().max())
            used_budget(f"{key}, step {step}", value, theirs[key], expected[key], terms=x.numel(), scale=scale)
    assert len(calls) == (4 if name in TWO else 2)
    is_added = residual and name not in WITHOUT_RESIDUAL and name != "broadcast shortcut"
    assert all((call["residual"] is not None) == is_added for call in calls)
    for (key, truth), a, b in zip(exact.named_buffers(), eager.buffers(), ours.buffers(), strict=True):
        if truth.is_floating_point():
            used_budget(key, b, a, truth, terms=x.numel(), scale=float(truth.abs().max()))
        else:
            assert torch.equal(a, b) and int(b) == 2 * training, key


@every_way
@every_block
def test_nothing_but_the_forward_changes_and_revert_is_exact(name, residual):
    block = FUSED[name]()
    kind, attributes, keys = type(block), dict(vars(block)), list(block.state_dict())
    modules, tensors = dict(block.named_modules()), [*block.parameters(), *block.buffers()]
    once = type(convert(block, fuse_norm=True, fuse_residual=residual))
    assert issubclass(once, FusedBlock) and isinstance(block, kind) and list(block.state_dict()) == keys
    assert type(convert(block, fuse_norm=True, fuse_residual=residual)) is once and type(convert(block)) is once
    assert dict(block.named_modules()) == modules
    assert all(a is b for a, b in zip([*block.parameters(), *block.buffers()], tensors, strict=True))
    revert(block)
    assert type(block) is kind and vars(block) == attributes


@pytest.mark.parametrize("first", ["fuse_residual", "fuse_norm"])
@pytest.mark.parametrize("both", [True, False])
def test_converting_again_with_another_option_fuses_more(first, both, calls):
    """``both``: request both options; otherwise only the new one, and the first stays fused."""
    block, x = prepared(Official()), make_x((2, C, 5, 5))
    expected = copy.deepcopy(block)(x)
    convert(block, **{first: True})
    report = conversion_report(block)
    statuses = {"fuse_residual": report.residual[0].status, "fuse_norm": report.norm[0].status}
    other = "fuse_norm" if first == "fuse_residual" else "fuse_residual"
    assert statuses == {first: "fused", other: "could be fused"}
    convert(block, **{other: True}, **({first: True} if both else {}))
    report = conversion_report(block)
    assert report.residual[0].status == report.norm[0].status == "fused"
    torch.testing.assert_close(block(x), expected)
    (call,) = calls
    assert call["residual"] is not None
    assert type(revert(block)) is Official


class TwoOutputs(nn.BatchNorm2d):
    """A subclass that may do anything."""


def hooked(norm: nn.Module) -> nn.Module:
    norm.register_forward_hook(lambda *_: None)
    return norm


def replaced(norm: nn.Module) -> nn.Module:
    norm.forward = lambda x: x
    return norm


def channels_last(m: Block, y: Tensor, x: Tensor) -> Tensor:
    return m.eca(m.bn(y).movedim(1, -1)).movedim(-1, 1) + x


def in_place_between(m: Block, y: Tensor, x: Tensor) -> Tensor:
    v = y.view(y.shape)
    u = m.bn(y)
    v.mul_(2)
    return m.eca(u) + v


def of(norm: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Block(plain, bn=norm())


LEFT_ALONE = {
    "SyncBatchNorm": (of(lambda: nn.SyncBatchNorm(C)), "the input of eca comes from bn, a SyncBatchNorm"),
    "InstanceNorm": (
        of(lambda: nn.InstanceNorm2d(C)),
        "comes from bn, an InstanceNorm2d, not from an nn.BatchNorm1d, 2d or 3d",
    ),
    "timm's with an activation": (of(lambda: BatchNormAct2d(C)), "comes from bn, a BatchNormAct2d"),
    "frozen, torchvision's": (of(lambda: FrozenBatchNorm2d(C)), "comes from bn, a FrozenBatchNorm2d"),
    "a subclass": (of(lambda: TwoOutputs(C)), "comes from bn, a TwoOutputs"),
    "hooks": (of(lambda: hooked(nn.BatchNorm2d(C))), "bn has hooks"),
    "forward replaced": (of(lambda: replaced(nn.BatchNorm2d(C))), "forward of bn was replaced on the instance"),
    "no norm": (lambda: Block(lambda m, y, x: m.eca(y) + x), "the input of eca comes from conv, a Conv2d"),
    "an operation": (lambda: Block(lambda m, y, x: m.eca(m.bn(y) * 2) + x), "comes from mul, not from a batch norm"),
    "the block's input": (lambda: Block(lambda m, y, x: m.eca(x) + y), "comes from x, not from a batch norm"),
    "a ReLU between": (lambda: Block(lambda m, y, x: m.eca(torch.relu(m.bn(y))) + x), "comes from relu"),
    "output used twice": (
        lambda: Block(lambda m, y, x: (lambda u: m.eca(u) + u)(m.bn(y))),
        "the output of bn has 2 users",
    ),
    "called twice": (lambda: Block(lambda m, y, x: m.eca(m.bn(m.bn(y))) + x), "bn is called more than once"),
    "two names": (lambda: (lambda b: setattr(b, "bn2", b.bn) or b)(Block(plain)), "bn and bn2 are the same module"),
    "changed in place": (lambda: Block(in_place_between), "mul_, between bn and what follows it, may change"),
    "read by the forward": (
        lambda: Block(lambda m, y, x: m.eca(m.bn(y)) * m.bn.eps + x),
        "its forward does more with bn than call it",
    ),
    "another variant": (
        lambda: Block(plain, eca=originals.DynamicMultiKernelECA(C)),
        "eca computes multi_kernel_eca, and batch norm is fused with eca only",
    ),
    "another layer of ours": (
        lambda: Block(plain, eca=eca_cuda.BidirectionalECA(C)),
        "eca is a BidirectionalECA, and batch norm is fused with eca only",
    ),
    "channels last": (
        lambda: Block(channels_last, eca=with_a_bias(channels_dim=-1)),
        "eca takes x with the channels as the last dimension",
    ),
    "a hook on a Sequential": (
        lambda: Block(in_a_sequential, left=hooked(left())),
        "the input of eca comes from left, a Sequential",
    ),
    "a forward that torch.fx cannot trace": (
        lambda: Block(lambda m, y, x: m.eca(m.bn(y)) if y.sum() > 0 else x),
        "torch.fx cannot trace",
    ),
}


@pytest.mark.parametrize("make, reason", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_norms_are_left_alone_where_it_is_not_safe(make, reason):
    """The residual is fused as without ``fuse_norm``."""
    block = make()
    alone, both = convert(copy.deepcopy(block), fuse_norm=True), copy.deepcopy(block)
    convert(both, fuse_norm=True, fuse_residual=True)
    assert type(alone) is type(block)
    for m in (block, alone, both):
        (finding,) = conversion_report(m).norm
        assert finding.status == "left alone" and reason in finding.detail
    before, after = convert(block, fuse_residual=True), both
    assert type(before) is type(after)
    assert conversion_report(before).residual == conversion_report(after).residual


def test_a_norm_is_fused_where_the_residual_cannot_be(calls):
    block, x = prepared(Block(lambda m, y, x: m.eca(m.bn(y)) * 2 + x)), make_x((2, C, 5, 5))
    made = fused(block)
    report = conversion_report(made)
    assert report.norm[0].status == "fused" and report.residual[0].status == "left alone"
    torch.testing.assert_close(made(x), block(x))
    assert len(calls) == 1 and calls[0]["residual"] is None
    assert "1 x Block, the batch norm is done by the attention: (the model)" in str(report)


@pytest.mark.parametrize("rank", [3, 5])
def test_sequences_and_volumes(rank, calls):
    conv, norm = {3: (nn.Conv1d, nn.BatchNorm1d), 5: (nn.Conv3d, nn.BatchNorm3d)}[rank]
    block = Block(plain, conv=conv(C, C, 1), bn=norm(C), eca=with_a_bias()).double()
    made, x = fused(block), make_x((4, C, 7, 3, 2)[:rank], torch.float64)
    for training in (True, False):
        torch.testing.assert_close(results(made.train(training), x), results(block.train(training), x))
    torch.testing.assert_close(made.state_dict(), block.state_dict())
    assert len(calls) == 2


def test_an_active_drop_path_runs_the_norm_itself(calls):
    block = prepared(Bottleneck(C, C // 4, attn_layer="eca", drop_path=DropPath(0.5)))
    made, x, seen = fused(block), make_x((8, C, 3, 3)), []
    for m in (block, made):
        torch.manual_seed(1)
        seen.append([m(x), m.state_dict()])
    torch.testing.assert_close(*seen)
    assert not calls and made.eval()(x) is not None and len(calls) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("make", [Official, in_torchvision, partial(Bottleneck, C, C // 4, attn_layer="eca")])
def test_copies_and_pickles_stay_fused(make, copied, calls):
    block, x = fused(prepared(make())), make_x((2, C, 5, 5))
    other = copied(block)
    assert type(other) is type(block)
    assert torch.equal(other(x), block(x)) and len(calls) == 2
    torch.testing.assert_close(other.state_dict(), block.state_dict(), rtol=0, atol=0)
