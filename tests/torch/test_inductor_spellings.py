# SPDX-License-Identifier: MIT
"""The Inductor pass on other spellings of ECA of maps: pools, shapes, products, and across modules."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import calls, enabled, graph_after_the_pass  # noqa: F401 - a fixture that every test uses
from torch import Tensor, nn

from eca_cuda.testing import make_x

SHAPE = (2, 8, 6, 5)


class Layer(nn.Module):
    """Holds the convolution for the spellings below."""

    def __init__(self, forward: Callable[[nn.Conv1d, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.how = nn.Conv1d(1, 1, 3, padding=1), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.conv, x)


def scaled(conv: nn.Conv1d, x: Tensor, means: Tensor) -> Tensor:
    """x scaled by the gate of means ``[N, C, ...]``, with further dimensions of size 1."""
    return x * conv(means.flatten(1).unsqueeze(1)).sigmoid().view(-1, 8, 1, 1)


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "a list": lambda x: x.mean([2, 3]),
    "from the end": lambda x: torch.mean(x, dim=(-2, -1)),
    "axis": lambda x: x.mean(axis=(2, 3)),
    "rows, then columns": lambda x: x.mean(-1).mean(-1),
    "columns, then rows": lambda x: x.mean(2, keepdim=True).mean(3),
    "flattened": lambda x: x.flatten(2).mean(2),
    "viewed": lambda x: x.view(x.shape[0], x.shape[1], -1).mean(-1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "moved": lambda x: torch.movedim(x, 1, -1).flatten(1, 2).mean(1),
    "average pool": lambda x: F.avg_pool2d(x, (6, 5)),
    "average pool of its size": lambda x: F.avg_pool2d(x, kernel_size=x.size()[2:]),
    "average pool of a sequence": lambda x: F.avg_pool1d(x.flatten(2), 30),
    "adaptive, by name": lambda x: F.adaptive_avg_pool2d(x, output_size=(1, 1)),
    "adaptive, of a sequence": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, dynamic):
    layer = Layer(lambda conv, x: scaled(conv, x, POOLS[name](x)))
    dynamic = dynamic and name not in ("average pool", "average pool of a sequence")  # these need a static size
    found = calls(graph_after_the_pass(layer, make_x(SHAPE), dynamic=dynamic))
    assert set(found) - {"size", "getitem", "Size"} == {"traced_eca"} and found.count("traced_eca") == 1


def used_for_more(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Pools a view of x and returns that view too, which must not prevent the rewrite."""
    t = x.flatten(2)
    return scaled(conv, x, t.mean(2)).flatten(2) + t


def gate(conv: nn.Conv1d, x: Tensor) -> Tensor:
    return conv(x.mean((2, 3))[:, None]).sigmoid()


def flat(conv: nn.Conv1d, x: Tensor) -> Tensor:
    t = x.flatten(2)
    return (t * conv(t.mean(2).unsqueeze(1)).sigmoid().mT).view_as(x)


PRODUCTS: dict[str, tuple[Callable[[nn.Conv1d, Tensor], Tensor], list[str]]] = {
    "torch.mul": (lambda conv, x: torch.mul(gate(conv, x).view(2, 8, 1, 1), x), []),
    "expanded first": (lambda conv, x: gate(conv, x).view(2, 8, 1, 1).expand_as(x) * x, []),
    "broadcast": (lambda conv, x: x * torch.broadcast_to(gate(conv, x).view(2, 8, 1, 1), x.shape), []),
    "new axes": (lambda conv, x: x * gate(conv, x)[:, 0, :, None, None], []),
    "ellipsis": (lambda conv, x: x.multiply(gate(conv, x)[:, 0][..., None, None]), []),
    "transposed": (lambda conv, x: x * gate(conv, x).mT.unsqueeze(-1), []),
    "swapped": (lambda conv, x: x * gate(conv, x).swapaxes(1, 2)[..., None], []),
    "unflattened": (lambda conv, x: x * gate(conv, x).flatten(1).unflatten(1, (8, 1, 1)), []),
    "like x": (lambda conv, x: x * gate(conv, x).type_as(x).reshape(2, 8, 1, 1).to(x.dtype), []),
    "in place": (lambda conv, x: x * conv(x.mean((2, 3))[:, None]).sigmoid_().view(2, 8, 1, 1), []),
    "hard, in place": (lambda conv, x: x * F.hardsigmoid(conv(x.mean((2, 3))[:, None]), True).view(2, 8, 1, 1), []),
    "flat": (flat, ["flatten", "view_as"]),
    "a view for more": (used_for_more, ["flatten", "flatten", "add"]),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_and_shapes(name):
    spelling, others = PRODUCTS[name]
    assert sorted(calls(graph_after_the_pass(Layer(spelling), make_x(SHAPE)))) == sorted(["traced_eca", *others])


class Transpose(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)


def sequential_gate() -> nn.Sequential:
    conv = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
    pool, shape = (nn.AdaptiveAvgPool2d(1), nn.Flatten(2), Transpose()), (Transpose(), nn.Unflatten(2, (1, 1)))
    return nn.Sequential(*pool, conv, nn.Hardsigmoid(inplace=True), *shape)


class GateInTheParent(nn.Module):
    """A block whose attention is an ``nn.Sequential`` that returns the gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.attention = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8).eval(), sequential_gate()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = y * self.attention(y)
        return F.relu(y + x)


class Inline(nn.Module):
    """ECA written out in the forward of a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gap, self.eca = nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d((1, 1)), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        out = self.conv(x)
        w = self.gap(out).view(b, 1, c)
        shortcut = F.silu(x)
        w = torch.sigmoid(self.eca(w)).view(b, c, 1, 1)
        return out * w.expand_as(out) + shortcut


@pytest.mark.parametrize("block, function", [(GateInTheParent, "traced_batch_norm_eca"), (Inline, "traced_eca")])
def test_the_pass_finds_what_convert_cannot(block, function):
    graph = graph_after_the_pass(block(), make_x(SHAPE))
    assert not {"mul", "sigmoid", "hardsigmoid", "add", "relu", "batch_norm"} & set(calls(graph))
    assert calls(graph).count(function) == 1


# Each differs from a spelling above in one detail.
LOOK_ALIKES: dict[str, Callable[[nn.Conv1d, Tensor], Tensor]] = {
    "data": lambda conv, x: x * gate(conv, x.data).view(2, 8, 1, 1),
    "rows alone": lambda conv, x: scaled(conv, x, x.mean(-1)[..., 0]),
    "a part of the map": lambda conv, x: scaled(conv, x, x[..., 1:].mean((2, 3))),
    "the first window": lambda conv, x: scaled(conv, x, F.avg_pool2d(x, (5, 4), stride=6)),
    "divided otherwise": lambda conv, x: scaled(conv, x, F.avg_pool2d(x, (6, 5), divisor_override=7)),
    "padded": lambda conv, x: scaled(conv, x, F.avg_pool2d(x, (6, 5), stride=9, padding=(2, 2))),
    "mean of the maxima": lambda conv, x: scaled(conv, x, x.amax(-1).mean(-1)),
    "in another dtype": lambda conv, x: scaled(conv, x, x.mean((2, 3), dtype=torch.float64).float()),
    "over the batch": lambda conv, x: x * conv(x.mean((2, 3)).T.unsqueeze(1)).sigmoid().mT.reshape(2, 8, 1, 1),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay_as_they_are(name):
    assert "traced_eca" not in calls(graph_after_the_pass(Layer(LOOK_ALIKES[name]), make_x(SHAPE)))
