# SPDX-License-Identifier: MIT
"""The Inductor pass on tokens ``[B, N, C]`` and ``[B, H, W, C]``, the maps of transformers and metaformers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from rewriting import calls, check_training, enabled, graph_after_the_pass  # noqa: F401 - a fixture that every test uses
from torch import Tensor, nn

from eca_cuda.testing import make_x

TOKENS, ROWS = (2, 30, 8), (2, 6, 5, 8)


def tokens(shape: tuple[int, ...]) -> Tensor:
    """Tokens whose channels differ in mean and spread."""
    return make_x((shape[0], shape[-1], *shape[1:-1])).movedim(1, -1).contiguous()


class Layer(nn.Module):
    """Holds the convolution for the spellings below."""

    def __init__(self, forward: Callable[[nn.Conv1d, Tensor], Tensor], **options: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.how = nn.Conv1d(1, 1, 3, padding=1, **options), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.conv, x)


def pooled_as_a_sequence(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """The official layer's lines, with the tokens transposed for the pool only."""
    y = F.adaptive_avg_pool1d(x.transpose(1, 2), 1)
    return x * conv(y.transpose(-1, -2)).sigmoid().expand_as(x)


def turned_around(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """An ECA of maps between two permutations."""
    x = x.permute(0, 3, 1, 2)
    y = conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
    return (x * y.sigmoid()).permute(0, 2, 3, 1)


def as_a_map(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A square of tokens, reshaped to a map and back."""
    n, length, c = x.shape
    x = x.transpose(1, 2).reshape(n, c, 6, length // 6)
    y = x * torch.sigmoid(conv(x.mean((2, 3)).unsqueeze(1))).view(n, c, 1, 1)
    return y.flatten(2).transpose(1, 2)


def with_pools_of_a_turned_map(conv: nn.Conv1d, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1)
    return x * conv(y[:, None]).sigmoid()[:, :, None]


SPELLINGS: dict[str, tuple[Callable[[nn.Conv1d, Tensor], Tensor], tuple[int, ...], list[str]]] = {
    "mean kept": (lambda conv, x: x * torch.sigmoid(conv(x.mean(1, keepdim=True))), TOKENS, []),
    "mean dropped": (lambda conv, x: conv(x.mean(dim=1).unsqueeze(1)).sigmoid() * x, TOKENS, []),
    "new axis": (lambda conv, x: x * conv(x.mean(-2)[:, None])[:, 0].sigmoid()[:, None, :], TOKENS, []),
    "rows": (lambda conv, x: x * conv(x.mean((1, 2)).unsqueeze(1)).sigmoid().unsqueeze(1), ROWS, []),
    "rows kept": (
        lambda conv, x: x * conv(x.mean([1, 2], keepdim=True).flatten(1, 2)).sigmoid().view(-1, 1, 1, 8),
        ROWS,
        [],
    ),
    "rows as tokens": (lambda conv, x: x * conv(x.flatten(1, 2).mean(1, True)).sigmoid()[:, None], ROWS, []),
    "one row after the other": (lambda conv, x: x * conv(x.mean(1).mean(1, True)).sigmoid()[:, None], ROWS, []),
    "pooled as a sequence": (pooled_as_a_sequence, TOKENS, []),
    "pools of a turned map": (with_pools_of_a_turned_map, ROWS, []),
    "turned around": (turned_around, ROWS, ["permute", "permute"]),
    "as a map": (as_a_map, TOKENS, ["flatten", "reshape", "transpose", "transpose"]),
    "residual and relu": (
        lambda conv, x: F.relu(x * conv(x.mean(1, keepdim=True)).sigmoid() + x),
        TOKENS,
        [],
    ),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_become_one_call(name, dynamic):
    spelling, shape, others = SPELLINGS[name]
    graph = graph_after_the_pass(Layer(spelling), tokens(shape), dynamic=dynamic)
    sizes = {"size", "getitem", "floordiv"}
    assert sorted(set(calls(graph)) - sizes) == sorted({"traced_eca", *others})
    assert calls(graph).count("traced_eca") == 1


def square(conv: nn.Conv1d, x: Tensor, pooled: int, scaled: int) -> Tensor:
    """For ``[N, 8, 8]``: pools one dimension and scales along another, or the same."""
    shape = [2, 1, 1]
    shape[scaled] = 8
    return x * conv(x.mean(pooled).unsqueeze(1)).sigmoid().view(shape)


@pytest.mark.parametrize("scaled", [1, 2])
@pytest.mark.parametrize("pooled", [1, 2])
def test_the_graph_of_a_square_tells_which_dimension_holds_the_channels(pooled, scaled):
    layer = Layer(lambda conv, x: square(conv, x, pooled, scaled))
    graph = graph_after_the_pass(layer, tokens((2, 8, 8))).graph
    found = [node.kwargs["channels_dim"] for node in graph.nodes if "channels_dim" in node.kwargs]
    assert found == ([] if pooled == scaled else [{1: 1, 2: -1}[scaled]])


def gate(conv: nn.Conv1d, x: Tensor) -> Tensor:
    return conv(x.mean(1, keepdim=True)).sigmoid()


def used_twice(conv: nn.Conv1d, x: Tensor) -> Tensor:
    g = gate(conv, x)
    return x * g + g


def written_to(conv: nn.Conv1d, x: Tensor) -> Tensor:
    means = x.mean(1, keepdim=True)
    x.transpose(1, 2).add_(1)
    return x * conv(means).sigmoid()


def a_copy_that_is_old(conv: nn.Conv1d, x: Tensor) -> Tensor:
    turned = x.transpose(1, 2).contiguous()
    x.add_(1)
    return x * conv(turned.mean(2)[:, None]).sigmoid()


def another_dtype(conv: nn.Conv1d, x: Tensor) -> Tensor:
    half = x.to(torch.bfloat16)
    return half * conv(half.to(torch.float32).mean(1, keepdim=True)).sigmoid().to(torch.bfloat16)


def no_mean(conv: nn.Conv1d, x: Tensor) -> Tensor:
    x = x[:, :1]
    return x * conv(x).sigmoid()


def into_a_buffer(conv: nn.Conv1d, x: Tensor) -> Tensor:
    buffer = torch.zeros(2, 1, 8)
    with torch.no_grad():
        y = x * torch.sigmoid(conv(x.mean(1, keepdim=True)), out=buffer)
    return y + buffer


# Each differs from ECA in one detail.
LOOK_ALIKES: dict[str, Callable[[nn.Conv1d, Tensor], Tensor]] = {
    "clamped": lambda conv, x: x * gate(conv, x).clamp(0.1, 0.9),
    "detached": lambda conv, x: x * gate(conv, x.detach()),
    "gate detached": lambda conv, x: x * gate(conv, x).detach(),
    "used twice": used_twice,
    "written to in between": written_to,
    "a copy from before a write": a_copy_that_is_old,
    "without the first token": lambda conv, x: x * gate(conv, x[:, 1:]),
    "every second token": lambda conv, x: x * gate(conv, x[:, ::2]),
    "the first token alone": lambda conv, x: x * gate(conv, x[:, :1]),
    "one sample's gate": lambda conv, x: x * gate(conv, x)[:1],
    "the last channel's gate": lambda conv, x: x * gate(conv, x)[..., -1:],
    "chosen tokens": lambda conv, x: x * gate(conv, x[:, torch.arange(30)]),
    "turned tokens": lambda conv, x: x * gate(conv, x.flip(2)),
    "windows": lambda conv, x: (x.view(2, 6, 5, 8) * gate(conv, x.view(12, 5, 8)).view(2, 6, 1, 8)).view(2, 30, 8),
    "heads": lambda conv, x: x * conv(x.view(2, 30, 2, 4).mean((1, 2)).unsqueeze(1)).sigmoid().repeat(1, 1, 2),
    "channels in another order": lambda conv, x: x * gate(conv, x.view(2, 30, 2, 4).transpose(2, 3).flatten(2)),
    "gates in another order": lambda conv, x: x * gate(conv, x).view(2, 2, 4).transpose(1, 2).reshape(2, 1, 8),
    "no mean": no_mean,
    "over the tokens": lambda conv, x: x * conv(x.mean(2).unsqueeze(1)).sigmoid().transpose(1, 2)[:, :1],
    "into a buffer": into_a_buffer,
    "shifted": lambda conv, x: x * F.conv1d(x.mean(1, True), conv.weight, padding=2)[..., 2:].sigmoid(),
    "weighted": lambda conv, x: x * conv((x * x.softmax(1)).sum(1, keepdim=True)).sigmoid(),
    "mean of all": lambda conv, x: x * conv(x.mean().expand(2, 1, 8)).sigmoid(),
    "in another dtype": another_dtype,
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay_as_they_are(name):
    graph = graph_after_the_pass(Layer(LOOK_ALIKES[name]), tokens(TOKENS))
    assert "traced_eca" not in calls(graph)


def test_a_dimension_that_is_a_size_is_left_alone():
    """Dynamo keeps the call that returns the size, whose value is known only at run time."""
    layer = Layer(lambda conv, x: x * conv(x.transpose(1, x.shape[0]).mean(-1)[:, None]).sigmoid())
    assert "traced_eca" not in calls(graph_after_the_pass(layer, tokens(TOKENS), dynamic=True))


def test_the_gate_used_by_the_look_alikes_is_found():
    graph = graph_after_the_pass(Layer(lambda conv, x: x * gate(conv, x)), tokens(TOKENS))
    assert calls(graph) == ["traced_eca"]


class Gate(nn.Module):
    """The gate alone; the parent multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.flatten(1, -2).mean(1, keepdim=True)
        return self.conv(means).sigmoid().unflatten(1, (1,) * (x.dim() - 2))


class MetaFormer(nn.Module):
    """``[B, H, W, C]``: a mixer and an MLP, each gated before its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.mixer, self.gates = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ModuleList(Gate() for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norms[0](x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + y * self.gates[0](y)
        y = self.mlp(self.norms[1](x))
        return x + self.gates[1](y) * y


class ConvNeXt(nn.Module):
    """A block of maps whose MLP has the channels as the last dimension, with ECA written out between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.eca, self.gamma = nn.Conv1d(1, 1, 5, padding=2, bias=False), nn.Parameter(torch.full((8,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        g = torch.sigmoid(self.eca(y.mean(dim=(1, 2)).unsqueeze(1)))
        y = y * g[:, :, None]
        return x + (self.gamma * self.down(y)).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """A layer of a transformer: attention, then ECA over hidden states and the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(8, 24), nn.LayerNorm(8)
        self.pool, self.conv, self.act = nn.AdaptiveAvgPool1d(1), nn.Conv1d(1, 1, 3, padding=1), nn.Sigmoid()

    def forward(self, hidden_states: Tensor) -> Tensor:
        query, key, value = self.project(hidden_states).chunk(3, -1)
        attended = (query @ key.transpose(1, 2)).softmax(-1) @ value
        weights = self.act(self.conv(self.pool(attended.transpose(1, 2)).transpose(1, 2)))
        return self.norm(attended * weights + hidden_states)


@pytest.mark.parametrize(
    "block, shape, layers", [(MetaFormer, ROWS, 2), (ConvNeXt, (2, 8, 6, 5), 1), (Encoder, TOKENS, 1)]
)
def test_inductor_trains_blocks_of_transformers_with_the_fused_operator(block, shape, layers):
    torch.manual_seed(0)
    model, x = block().double(), torch.randn(shape, dtype=torch.float64)
    check_training(model, x, layers)
