# SPDX-License-Identifier: MIT
"""Other forms of ECA: tokens, further arguments, other names for the channels, and gates applied elsewhere."""

import copy

import pytest
import torch
from disguises import ECA
from lookalikes import eca_layer
from torch import Tensor, nn

import eca_cuda
from eca_cuda import conversion_report, convert, inductor
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x

pytestmark = pytest.mark.filterwarnings("ignore:convert. no attention")


class Tokens(nn.Module):
    """x [B, N, C]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x.mean(1, keepdim=True)))


class TokenMap(Tokens):
    """x [B, H, W, C]."""

    def forward(self, x):
        return x * self.conv(x.mean((1, 2)).unsqueeze(1)).sigmoid().unsqueeze(1)


class TurnedTokens(Tokens):
    """x [B, N, C], with an ECA over [B, C, N]."""

    def forward(self, x):
        t = x.transpose(1, 2)
        return (t * self.conv(t.mean(2).unsqueeze(1)).transpose(1, 2).sigmoid()).transpose(1, 2)


class TokenMix(nn.Module):
    """Three kernels over the channels of x [B, N, C]."""

    def __init__(self, c=16):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(1, 1, k, padding=k // 2, bias=False) for k in (3, 5, 7))
        self.mix = nn.Linear(c, 3)

    def forward(self, x):
        m = x.mean(1)
        p = self.mix(m).softmax(-1)
        z = sum(p[:, i, None] * conv(m[:, None])[:, 0] for i, conv in enumerate(self.convs))
        return x * z.sigmoid()[:, None]


class WithSizes(Tokens):
    """Takes height and width, as transformers pass them, and does not use them."""

    def forward(self, x, H, W):
        return super().forward(x)


class WithSizesPerhaps(Tokens):
    def forward(self, x, H=None, W=None):
        return super().forward(x)


class AsksForChannels(eca_layer):
    def __init__(self, width):
        super().__init__(width)
        self.width = width

    def forward(self, x):
        _, c, _, _ = x.size()
        if c != self.width:  # pytest rewrites assertions
            raise AssertionError("not mine")
        return super().forward(x)


def named(name: str) -> nn.Module:
    class Module(ECA):
        def __init__(self):
            super().__init__()
            setattr(self, name, 24)

        def forward(self, x):
            c = getattr(self, name)
            return x * self.act(self.conv(x.mean((2, 3)).view(-1, 1, c))).view(-1, c, 1, 1)

    return Module()


FORMS = {
    "tokens": (Tokens, (2, 40, 16), ()),
    "maps of tokens": (TokenMap, (2, 5, 7, 16), ()),
    "tokens turned": (TurnedTokens, (2, 40, 16), ()),
    "three kernels over tokens": (TokenMix, (2, 40, 16), ()),
    "sizes come along": (WithSizes, (2, 40, 16), (5, 8)),
    "sizes may come along": (WithSizesPerhaps, (2, 40, 16), (5, 8)),
    "sizes may come along and do not": (WithSizesPerhaps, (2, 40, 16), ()),
    "asks for its channels": (lambda: AsksForChannels(24), (2, 24, 5, 6), ()),
}
FORMS |= {name: (lambda name=name: named(name), (2, 24, 5, 6), ()) for name in ("in_planes", "nf", "num_channels", "w")}


def gradients(m: nn.Module, y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), [x, *m.parameters()])


@pytest.mark.parametrize("make, shape, others", FORMS.values(), ids=FORMS)
def test_it_is_fused(make, shape, others, monkeypatch):
    plain, x = make().double(), make_x(shape, torch.float64).requires_grad_()
    converted, calls = convert(copy.deepcopy(plain)), []
    assert isinstance(converted, FusedAttention)
    for name in ("eca", "multi_kernel_eca"):
        original = getattr(eca_cuda.functional, name)
        monkeypatch.setattr(
            eca_cuda.functional, name, lambda *a, original=original, **k: calls.append(k) or original(*a, **k)
        )
    y, expected = converted(x, *others), plain(x, *others)
    assert len(calls) == 1 and y.stride() == expected.stride()
    torch.testing.assert_close(y, expected)
    grads = [
        torch.autograd.grad(t.square().sum(), [x, *m.parameters()]) for t, m in ((y, converted), (expected, plain))
    ]
    torch.testing.assert_close(*grads)


def test_a_check_of_the_channels_still_runs():
    with pytest.raises(AssertionError, match="not mine"):
        convert(AsksForChannels(24))(make_x((2, 16, 5, 6)))


def test_unknown_arguments_are_refused_as_before():
    with pytest.raises(TypeError):
        convert(WithSizesPerhaps())(make_x((2, 40, 16)), 1, 2, 3)
    with pytest.raises(TypeError):
        convert(WithSizesPerhaps())(make_x((2, 40, 16)), D=1)


def test_unused_buffers_do_not_matter():
    """Counters of operations leave such buffers."""
    module = eca_layer(16)
    for m in module.modules():
        m.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
    assert isinstance(convert(module), FusedAttention)


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.extras = nn.ModuleList([eca_layer(16)])

    def forward(self, x):
        y = self.conv(x)
        for extra in self.extras:
            y = extra(y)
        return torch.relu(y + x)


def test_the_owner_of_a_list_of_modules_is_the_block():
    block, x = InAList().eval(), make_x((2, 16, 5, 6))
    expected = block(x)
    convert(block, fuse_residual=True)
    assert [(f.path, f.status) for f in conversion_report(block).residual] == [("", "fused")]
    assert isinstance(block, FusedBlock)
    torch.testing.assert_close(block(x), expected)


class Gate(ECA):
    def forward(self, x):
        return self.gate(x)


class GateInAChild(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(16, 16, 1), Gate()

    def forward(self, x):
        y = self.conv(x)
        return y * self.gate(y)


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.across = nn.Conv2d(16, 16, 1), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.across(y.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)


class Turn(nn.Module):
    def forward(self, x):
        return x.squeeze(-1).transpose(1, 2)


class GateInASequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), Turn(), nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Sigmoid()
        )

    def forward(self, x):
        y = self.conv(x)
        return y * self.gate(y).transpose(1, 2).unsqueeze(-1)


@pytest.mark.parametrize(
    "make, path",
    [(GateInAChild, "gate"), (Inline, ""), (GateInASequential, "gate")],
    ids=["child", "inline", "sequential"],
)
def test_a_gate_that_is_applied_elsewhere_is_named_and_the_inductor_pass_fuses_it(make, path):
    module, x = make().eval(), make_x((2, 16, 5, 6))
    (finding,) = conversion_report(module).attention
    assert finding.path == path and finding.status == "left alone"
    assert "Use eca_cuda.inductor.enable()" in finding.detail
    graphs = []

    def backend(graph, _):
        inductor.rewrite(graph.graph)
        graphs.append(graph)
        graph.recompile()
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, backend=backend, fullgraph=True)(x), module(x))
    assert [node.target for node in graphs[0].graph.nodes].count(inductor.traced_eca) == 1


class Smoothing(nn.Module):
    """A convolution of one channel that is not attention, in a forward that does more."""

    def __init__(self):
        super().__init__()
        self.smooth, self.out = nn.Conv1d(1, 1, 5, stride=2), nn.Linear(10, 10)

    def forward(self, x):
        return self.out(self.smooth(x))


def test_a_convolution_of_another_kind_is_not_mentioned():
    assert conversion_report(Smoothing()).attention == ()
