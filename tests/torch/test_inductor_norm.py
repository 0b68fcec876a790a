# SPDX-License-Identifier: MIT
"""The Inductor pass fuses the batch norm before ECA if that changes no result."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from originals import EfficientChannelAttention
from rewriting import calls, enabled, graph_after_the_pass  # noqa: F401 - a fixture that every test uses
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eca_cuda.testing import make_x

SHAPE = (2, 8, 6, 5)


class OfficialBlock(nn.Module):
    """``ECABasicBlock`` of the authors' repository: the shortcut's batch norm runs between ECA and the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8, momentum=0.3, eps=1e-3)
        self.eca = EfficientChannelAttention(8)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, 2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.eca(out)
        residual = self.downsample(x)
        out += residual
        return self.relu(out)


def timm_block() -> nn.Module:
    resnet = pytest.importorskip("timm.models.resnet")
    block = resnet.Bottleneck(8, 2, attn_layer=pytest.importorskip("timm.layers").EcaModule)
    nn.init.constant_(block.bn3.weight, 0.5)  # it is zero, which would hide the layers before
    return block


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {"official": (OfficialBlock, 4), "timm": (timm_block, 8)}


def step(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The output, the gradients, and the running statistics and counts afterwards."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.square().mean().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters()), *(b.clone() for b in model.buffers())]


def rewritten() -> tuple[int, int]:
    """The numbers of rewritten layers, and of those with a norm, since the last call."""
    found = counters["inductor"]["eca_cuda"], counters["inductor"]["eca_cuda_norm"]
    counters.clear()
    return found


def compare(model: nn.Module, *xs: Tensor, is_taken_along: bool = True, **options: Any) -> None:
    """Assert that one step for each x, then inference, match eager mode."""
    eager, compiled = model, copy.deepcopy(model)
    run = torch.compile(compiled, **options)
    for x in xs:
        torch.testing.assert_close(step(compiled, run, x), step(eager, eager, x))
    layers, norms = rewritten()  # Dynamo may restart when it finds that a number is constant
    assert layers > 0 and norms == is_taken_along * layers
    eager.eval(), compiled.eval()
    with torch.no_grad():
        torch.testing.assert_close(run(xs[0]), eager(xs[0]))
    layers, norms = rewritten()
    assert layers > 0 and norms == layers
    torch.testing.assert_close(compiled.state_dict(), eager.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_train_and_infer_as_in_eager_mode(name, layout):
    torch.manual_seed(0)
    block, channels = BLOCKS[name]
    xs = [make_x((2, channels, 6, 5), torch.float64, seed=s).to(memory_format=layout) for s in range(3)]
    compare(block().double(), *xs)


# Spellings of the norm and of x; all continue with ``u * gate(u)``.


class Spelled(nn.Module):
    """A norm and an ECA of ``how(module, x)``; the statistics afterwards are compared too."""

    def __init__(self, norm: nn.Module, how: Callable[["Spelled", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.how, self.conv = norm, how, nn.Conv1d(1, 1, 3, padding=1)
        for t in (*norm.parameters(), *norm.buffers()):
            if t.is_floating_point():
                nn.init.uniform_(t, 0.5, 1.5)

    def gate(self, u: Tensor) -> Tensor:
        means = u.flatten(2).mean(2).unsqueeze(1)
        return self.conv(means).sigmoid().view(u.shape[0], u.shape[1], *[1] * (u.dim() - 2))

    def scaled(self, u: Tensor) -> Tensor:
        return u * self.gate(u)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


def functional(function: Callable[..., Tensor], *args: Any, **options: Any) -> Callable[[Spelled, Tensor], Tensor]:
    """A call of ``function``; strings name attributes of the norm."""

    def how(m: Spelled, x: Tensor) -> Tensor:
        given = [getattr(m.norm, a) if isinstance(a, str) else a for a in args]
        named = {key: getattr(m.norm, a) if isinstance(a, str) else a for key, a in options.items()}
        return m.scaled(function(x, *given, **named))

    return how


def plain(m: Spelled, x: Tensor) -> Tensor:
    return m.scaled(m.norm(x))


def asked_for_its_size(m: Spelled, x: Tensor) -> Tensor:
    u = m.norm(x)
    means = F.avg_pool2d(u, kernel_size=u.size()[2:])
    return u * m.conv(means.flatten(1).unsqueeze(1)).sigmoid().view(2, 8, 1, 1)


STATISTICS = ("running_mean", "running_var")
NAMES = ("bias", "running_var", "running_mean")
NORM = nn.BatchNorm2d
SHAPES = {nn.BatchNorm1d: (2, 8, 7), nn.BatchNorm3d: (2, 8, 3, 4, 5)}
SPELLINGS: dict[str, tuple[Callable[[], nn.Module], Callable[[Spelled, Tensor], Tensor]]] = {
    "a module": (lambda: NORM(8), plain),
    "of sequences": (lambda: nn.BatchNorm1d(8), plain),
    "of volumes": (lambda: nn.BatchNorm3d(8), plain),
    "in inference": (lambda: NORM(8).eval(), plain),
    "in inference without affine": (lambda: NORM(8, affine=False).eval(), plain),
    "frozen": (lambda: NORM(8).eval().requires_grad_(False), plain),
    "without statistics": (lambda: NORM(8, track_running_stats=False), plain),
    "neither statistics nor affine": (lambda: NORM(8, affine=False, track_running_stats=False).eval(), plain),
    "an average over all, in inference": (lambda: NORM(8, momentum=None).eval(), plain),
    "an integer": (lambda: NORM(8, momentum=1), plain),
    "the function": (lambda: NORM(8), functional(F.batch_norm, *STATISTICS, "weight")),
    "no statistics": (lambda: NORM(8), functional(F.batch_norm, None, None, "weight", "bias", True, 0.5, 1e-2)),
    "keywords": (lambda: NORM(8), functional(F.batch_norm, training=True, eps=0.1, **{name: name for name in NAMES})),
    "torch's": (lambda: NORM(8), functional(torch.batch_norm, "weight", "bias", *STATISTICS, True, 0.2, 1e-3, False)),
    "asked for its size": (lambda: NORM(8), asked_for_its_size),
}


def after_the_pass(model: nn.Module, x: Tensor, dynamic: bool = False) -> list[str]:
    """The calls in the graph after the pass, which must match eager mode in results and in the module's state."""
    expected = copy.deepcopy(model)
    expected(x.clone())
    graph = graph_after_the_pass(model, x, dynamic=dynamic)
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    return calls(graph)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_norms(name, dynamic):
    norm, how = SPELLINGS[name]
    model = Spelled(norm(), how)
    found = after_the_pass(model, make_x(SHAPES.get(type(model.norm), SHAPE)), dynamic)
    assert "traced_batch_norm_eca" in found and not {"batch_norm", "mul", "sigmoid"} & set(found)


# Norms that cannot be fused: each differs in one detail from those above.


def between(act: Callable[[Spelled, Tensor, Tensor], Any]) -> Callable[[Spelled, Tensor], Any]:
    """Runs ``act`` on the module, x and the norm's output before ECA, and returns its result too."""

    def how(m: Spelled, x: Tensor) -> Any:
        u = m.norm(x)
        other = act(m, x, u)
        return m.scaled(u), other

    return how


def in_another_mode(m: Spelled, x: Tensor) -> Tensor:
    with torch.no_grad():
        u = m.norm(x)
    return m.scaled(u)


def added(view: Callable[[Tensor], Tensor]) -> Callable[[Spelled, Tensor], Tensor]:
    """Also adds the output of the norm."""

    def how(m: Spelled, x: Tensor) -> Tensor:
        u = m.norm(x)
        t = view(u)
        return u * m.gate(t) + t

    return how


def as_tokens(m: Spelled, x: Tensor) -> Tensor:
    """The norm has the channels as dimension 1, ECA as the last one."""
    u = m.norm(x)
    return u * m.conv(u.mean((1, 2)).unsqueeze(1)).sigmoid()[:, :, None]


def momentum_of_a_tensor(m: Spelled, x: Tensor) -> Tensor:
    u = F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True, momentum=x.new_tensor(0.5))
    return m.scaled(u)


def known_before(m: Spelled, x: Tensor) -> Any:
    mean = m.norm.running_mean.view(2, 4)
    u = m.norm(x)
    other = mean * 2
    return m.scaled(u), other


def parameters_in_a_row(m: Spelled, x: Tensor) -> Tensor:
    """Accepted by ``torch.batch_norm``, and refused by ``checks.check_norm``."""
    return m.scaled(F.batch_norm(x, m.norm.running_mean, m.norm.running_var, m.norm.weight[None], training=True))


LEFT: dict[str, Callable[[Spelled, Tensor], Any]] = {
    "used twice": between(lambda m, x, u: u.neg()),
    "a view of it used": between(lambda m, x, u: u.flatten(2)),
    "added": added(lambda u: u),
    "a view of it added": added(lambda u: u.contiguous()),
    "x written to": between(lambda m, x, u: x.add_(1)),
    "a parameter written to": between(lambda m, x, u: m.norm.weight.data.mul_(2)),
    "a number of its own written to": between(lambda m, x, u: torch.zeros(()).add_(x.sum())),
    "without gradients": in_another_mode,
    "statistics read": between(lambda m, x, u: m.norm.running_mean * 2),
    "statistics read as a view": known_before,
    "statistics updated again": between(lambda m, x, u: m.norm(x + 1)),
    "tokens": as_tokens,
    "parameters in a row": parameters_in_a_row,
    "momentum of a tensor": momentum_of_a_tensor,
}


@pytest.mark.parametrize("name", LEFT)
def test_norms_that_stay_as_they_are(name):
    found = after_the_pass(Spelled(NORM(8), LEFT[name]), make_x(SHAPE))
    assert "traced_eca" in found and "batch_norm" in found


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8)], ids=["instance", "group"])
def test_other_norms_stay_as_they_are(norm):
    found = after_the_pass(Spelled(norm, plain), make_x(SHAPE))
    assert "traced_eca" in found and "traced_batch_norm_eca" not in found


# The same through Inductor.


def test_dynamic_shapes():
    compare(Spelled(NORM(8), plain).double(), *(make_x((n, 8, 6, 5), torch.float64) for n in (2, 3, 7)), dynamic=True)


def test_an_average_over_all_batches_trains_as_in_eager_mode():
    """With ``momentum=None`` Dynamo breaks the graph in the middle of the norm in training."""
    xs = [make_x(SHAPE, torch.float64, seed=s) for s in range(3)]
    compare(Spelled(NORM(8, momentum=None), plain).double(), *xs, is_taken_along=False)


def test_statistics_are_updated_if_the_result_is_unused():
    model, x = Spelled(NORM(8), plain), make_x(SHAPE)
    expected = copy.deepcopy(model)
    for _ in range(2):
        torch.compile(lambda: [model(x), x + 1][1])()
        expected(x)
    assert rewritten() == (1, 1)
    torch.testing.assert_close(model.state_dict(), expected.state_dict())
    assert model.norm.num_batches_tracked == 2


def test_the_norm_of_a_shortcut_may_be_in_between():
    """It counts its batches between ECA and the addition."""
    found = after_the_pass(OfficialBlock(), make_x((2, 4, 6, 5)))
    assert found.count("batch_norm") == 2 and found.count("relu") == 1 and not {"mul", "iadd"} & set(found)


def test_autocast():
    model, x = OfficialBlock(), make_x((2, 4, 6, 5))

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x)

    assert "traced_batch_norm_eca" in calls(graph_after_the_pass(run, x, tolerance=5e-2))
