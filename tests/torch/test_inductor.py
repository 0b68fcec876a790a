# SPDX-License-Identifier: MIT
"""``eca_cuda.inductor.enable()`` rewrites ECA in other people's models, and leaves look-alikes alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import originals
import pytest
import torch
import torch.nn.functional as F
from rewriting import calls, check_training, enabled, graph_after_the_pass  # noqa: F401 - a fixture that every test uses
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code
from torch.utils.checkpoint import checkpoint

import eca_cuda
from eca_cuda import inductor
from eca_cuda.testing import channels_last, make_x

SHAPE = (2, 8, 5, 5)


class Official(nn.Module):
    """``eca_layer`` of the authors' repository."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=k, padding=(k - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


class HandWritten(nn.Module):
    """Another spelling: keyword arguments, hard sigmoid, bias, three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv1d(1, 1, 5, padding=2), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        m = torch.mean(x, dim=[2, 3, 4], keepdim=True).flatten(1).unsqueeze(1)
        return self.gate(self.conv(m)).permute(0, 2, 1).reshape(x.shape[0], x.shape[1], 1, 1, 1).mul(x)


def timm_layers() -> dict[str, nn.Module]:
    layers = pytest.importorskip("timm.layers")
    return {"timm": layers.EcaModule(8), "timm-circular": layers.CecaModule(8, kernel_size=5)}


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "original": lambda: originals.EfficientChannelAttention(8),
    "official": Official,
    "timm": lambda: timm_layers()["timm"],
    "timm-circular": lambda: timm_layers()["timm-circular"],
    "hand-written": HandWritten,
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_become_one_call(name, dynamic):
    shape = (2, 8, 3, 5, 4) if name == "hand-written" else SHAPE
    graph = graph_after_the_pass(LAYERS[name](), make_x(shape), dynamic=dynamic)
    assert [call for call in calls(graph) if call != "size"] == ["traced_eca"]


EPILOGUES: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "residual": (lambda y, r: y + r, ["traced_eca"]),
    "residual-first": (lambda y, r: r + y, ["traced_eca"]),
    "relu": (lambda y, r: F.relu(y + r), ["traced_eca"]),
    "in-place": (lambda y, r: y.add_(r).relu_(), ["traced_eca"]),
    "product-of-other-shape": (lambda y, r: y + r[:1], ["traced_eca", "getitem", "add"]),
    "other-dtype": (lambda y, r: y + r.double(), ["traced_eca", "double", "add"]),
    "into-the-residual": (lambda y, r: r.add_(y), ["traced_eca", "add_"]),
    "twice-itself": (lambda y, r: y + y, ["traced_eca", "add"]),
    "scaled": (lambda y, r: torch.add(y, r, alpha=2), ["traced_eca", "add"]),
    "other-activation": (lambda y, r: F.silu(y + r), ["traced_eca", "silu"]),
    "sum-used-twice": (lambda y, r: torch.cat([y + r, F.relu(y + r)]), ["traced_eca", "add", "add", "relu", "cat"]),
    "sum-unused": (lambda y, r: [y + r, r.neg()][1], ["traced_eca", "neg"]),
    "unused": (lambda y, r: r.neg(), ["traced_eca", "neg"]),
    "residual-written-to": (lambda y, r: y + r.mul_(2), ["traced_eca", "mul_", "add"]),
}


@pytest.mark.parametrize("name", EPILOGUES)
def test_a_following_addition_and_relu_are_fused_if_possible(name):
    layer, (epilogue, expected) = Official(), EPILOGUES[name]
    graph = graph_after_the_pass(lambda x, r: epilogue(layer(x), r), make_x(SHAPE), make_x(SHAPE, seed=1))
    assert sorted(calls(graph)) == sorted(expected)


def gate(x: Tensor, w: Tensor, **options: Any) -> Tensor:
    return F.conv1d(x.mean((2, 3)).unsqueeze(1), w, **{"padding": 1} | options).sigmoid().view(2, -1, 1, 1)


def without_gradient(x: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        g = gate(x, w)
    return x * g


def in_inference_mode(x: Tensor, w: Tensor) -> Tensor:
    with torch.inference_mode():
        g = gate(x, w)
    return x * g


def written_to_in_between(x: Tensor, w: Tensor) -> Tensor:
    g = gate(x, w)
    x.view(-1).add_(1)
    return x * g


@torch.library.custom_op("eca_cuda_tests::bump", mutates_args={"x"})
def bump(x: Tensor) -> None:
    x.add_(1)


# Writes to a tensor by other means than methods named with an underscore.
WRITES: dict[str, Callable[[Tensor], Any]] = {
    "a custom operator": bump,
    "an overload": lambda x: torch.ops.aten.add_.Tensor(x, 1),
    "an operator": lambda x: torch.ops.eca_cuda_tests.bump(x),
    "a dunder method": lambda x: x.__iadd__(1),
    "a checkpointed part": lambda x: checkpoint(lambda t: t.add_(1), x, use_reentrant=False),
}


@pytest.mark.parametrize("name", WRITES)
def test_whatever_writes_to_x_in_between_is_noticed(name):
    weight = torch.nn.Parameter(torch.tensor([[[0.5, -1.0, 2.0]]]))

    def function(x: Tensor) -> Tensor:
        g = gate(x, weight)
        WRITES[name](x)
        return x * g

    assert "traced_eca" not in calls(graph_after_the_pass(function, make_x(SHAPE)))


def test_reads_in_between_are_allowed():
    """Calls of torch.ops, one of an overload, one of a packet without a writing overload."""
    weight = torch.nn.Parameter(torch.tensor([[[0.5, -1.0, 2.0]]]))

    def function(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = gate(x, weight)
        other, shape = torch.ops.aten.add.Tensor(x, 1), torch.ops.aten.view_as(x, x)
        return x * g, other, shape

    assert "traced_eca" in calls(graph_after_the_pass(function, make_x(SHAPE)))


def gate_used_twice(x: Tensor, w: Tensor) -> Tensor:
    g = gate(x, w)
    return x * g + g


def gate_spread_over_more_pixels(x: Tensor, w: Tensor) -> Tensor:
    x = x[..., :1, :1]
    return x * gate(x, w).expand(SHAPE)


def channels_mixed_up(x: Tensor, w: Tensor) -> Tensor:
    """With H = W and N = C, so that wrong dimensions still fit."""
    x = x[:, :2]
    m = x.mean((2, 3)).transpose(0, 1).reshape(2, 1, 2)
    return x * F.conv1d(m, w, padding=1).sigmoid().view(2, 2, 1, 1)


def gated(m: Tensor, w: Tensor, *shape: int) -> Tensor:
    """The gate of the means ``m``, in ``shape``."""
    return F.conv1d(m, w, padding=1).sigmoid().view(shape)


def reflected(x: Tensor) -> Tensor:
    return F.pad(x.mean((2, 3)).unsqueeze(1), (1, 1), mode="reflect")


# Each differs from ECA in one detail.
LOOK_ALIKES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "another tensor is scaled": lambda x, w: (x + 1) * gate(x, w),
    "maximum": lambda x, w: x * gated(x.amax((2, 3))[:, None], w, 2, 8, 1, 1),
    "pool over height": lambda x, w: x * gated(x.mean(2).flatten(1)[:, None], w, 2, 8, 1, 5),
    "channels in the middle": lambda x, w: x * gated(x.mean((1, 3)).unsqueeze(1), w, 2, 1, 5, 1),
    "pool to 5": lambda x, w: x * gated(F.adaptive_avg_pool2d(x, 5).mean((2, 3)).unsqueeze(1), w, 2, 8, 1, 1),
    "no padding": lambda x, w: x[:, 1:-1] * gate(x, w, padding=0),
    "dilated": lambda x, w: x * gate(x, w, padding=2, dilation=2),
    "tanh": lambda x, w: x * F.conv1d(x.mean((2, 3)).unsqueeze(1), w, padding=1).tanh().view(2, 8, 1, 1),
    "two sigmoids": lambda x, w: x * gate(x, w).sigmoid(),
    "scaled gate": lambda x, w: x * (2 * gate(x, w)),
    "another tensor is pooled": lambda x, w: x * gate(x + 1, w),
    "reflected": lambda x, w: x * F.conv1d(reflected(x), w).sigmoid().view(2, 8, 1, 1),
    "over the batch": lambda x, w: x * gated(x.mean((2, 3)).view(1, 1, -1), w, 2, 8, 1, 1),
    "channels mixed up": channels_mixed_up,
    "gate without gradient": without_gradient,
    "gate in inference mode": in_inference_mode,
    "x written to in between": written_to_in_between,
    "gate used twice": gate_used_twice,
    "gate spread over more pixels": gate_spread_over_more_pixels,
    "gate repeated": lambda x, w: x * gate(x, w).expand(3, 2, 8, 1, 1),
    "detached": lambda x, w: x * gated(x.mean((2, 3)).detach().unsqueeze(1), w, 2, 8, 1, 1),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_look_alikes_stay_as_they_are(name):
    weight = torch.nn.Parameter(torch.tensor([[[0.5, -1.0, 2.0]]]))
    graph = graph_after_the_pass(lambda x: LOOK_ALIKES[name](x, weight), make_x(SHAPE))
    assert "traced_eca" not in calls(graph)


def test_the_gate_used_by_the_look_alikes_is_found():
    weight = torch.nn.Parameter(torch.tensor([[[0.5, -1.0, 2.0]]]))
    assert "traced_eca" in calls(graph_after_the_pass(lambda x: x * gate(x, weight), make_x(SHAPE)))


# Inductor itself.


def trained(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    model.zero_grad()
    y = run(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


def timm_model(name: str) -> nn.Module:
    """A model without zero-initialised gains, which would hide the layers before them."""
    torch.manual_seed(0)
    model = pytest.importorskip("timm").create_model(name, num_classes=7)
    for t in (*model.parameters(), *model.buffers()):
        if not t.count_nonzero():
            t.data.fill_(0.5)
    return model.eval()


@pytest.mark.parametrize("name, layers", [("ecaresnet26t", 8), ("eca_vovnet39b", 4)])
def test_timm_models_use_it_and_compute_the_same(name, layers):
    model, x = timm_model(name), make_x((1, 3, 64, 64))
    found = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        inductor.rewrite(graph.graph)
        graph.recompile()
        found.extend(node for node in graph.graph.nodes if getattr(node.target, "__name__", "").startswith("traced"))
        return graph.forward

    with torch.no_grad():
        expected = model.double()(x.double())
        y = torch.compile(model, backend=backend, fullgraph=True)(x.double())
    torch.testing.assert_close(y, expected)
    assert len(found) == layers
    if name == "ecaresnet26t":  # its bottlenecks have x = attention(x); x += shortcut; x = relu(x)
        assert all(node.kwargs["residual"] and node.kwargs["activation"] == "relu" for node in found)
        assert all("running_var" in node.kwargs for node in found)  # and a batch norm before that


def test_inductor_compiles_a_timm_model():
    """A small one: a stem and four stages of one bottleneck with ECA each."""
    resnet = pytest.importorskip("timm.models.resnet")
    torch.manual_seed(0)
    model = resnet.ResNet(
        resnet.Bottleneck,
        (1, 1, 1, 1),
        channels=(4, 4, 4, 4),
        stem_width=8,
        num_classes=3,
        block_args={"attn_layer": "eca"},
    ).double()
    x = make_x((2, 3, 32, 32), torch.float64)
    model.eval()
    check_training(model, x, 4)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(8, 8, 3, padding=1), Official()

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.conv(x))
        y += x
        return F.relu(y, inplace=True)


def test_autocast_regions_are_rewritten_and_half_maps_stay_half():
    model, x = Block(), make_x(SHAPE)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.attention(model.conv(x))

    assert "traced_eca" in calls(graph_after_the_pass(run, x, tolerance=2e-2))


def test_a_product_that_autocast_makes_wider_stays_as_it_is():
    """The gate has the other half dtype, so eager's product is float32; the operator's would not be."""
    model, x = Official(), make_x(SHAPE, torch.bfloat16)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return model(x)

    assert "traced_eca" not in calls(graph_after_the_pass(run, x))


def test_inductor_trains_with_the_fused_operator():
    """Off until enabled; then forward and backward use the operators, and gradients match eager."""
    model, x = Block(), channels_last(make_x(SHAPE))
    expected = trained(model, model, x)
    inductor.disable()
    _, code = run_fw_bw_and_get_code(lambda: torch.compile(model)(x))
    assert not any("eca_cuda" in text for text in code) and not counters["inductor"]["eca_cuda"]
    torch.compiler.reset()
    inductor.enable()
    _, code = run_fw_bw_and_get_code(lambda: torch.compile(model, dynamic=True)(x))
    assert counters["inductor"]["eca_cuda"] == 1
    assert "eca_cuda.eca_forward" in code[0] and "eca_cuda.eca_backward" in code[1]
    torch.testing.assert_close(trained(model, torch.compile(model, dynamic=True), x), expected)


def test_the_compile_mode_decides_what_the_rewritten_layer_becomes():
    """Inductor caches compiled graphs by the graph before the pass, so the key must include the mode."""
    model, x = Official(), make_x(SHAPE)
    for mode, operators in (("inline", 0), ("fused", 1), ("auto", 0)):
        torch.compiler.reset()
        with eca_cuda.compile_mode(mode), torch.no_grad():
            y, (code,) = run_and_get_code(torch.compile(model), x)
        torch.testing.assert_close(y, model(x))
        assert code.count("torch.ops.eca_cuda.eca_infer.default(") == operators
        assert "extern_kernels.convolution(" not in code


def test_a_change_of_any_file_changes_the_key_in_inductors_cache(monkeypatch):
    """After an upgrade, results cached before it must not be used."""
    named = []
    monkeypatch.setattr(inductor, "get_hash_for_files", lambda paths: named.extend(paths) or b"")
    torch._inductor.config.pre_grad_custom_pass.uuid()
    package = Path(eca_cuda.__file__).parent
    assert set(named) == {str(path) for path in package.rglob("*.py")} and len(named) > 20


def test_other_passes_are_kept_and_restored():
    seen = []
    inductor.disable()
    torch._inductor.config.pre_grad_custom_pass = before = lambda graph: seen.append(len(graph.nodes))
    try:
        inductor.enable()
        inductor.enable()
        with torch.no_grad():
            model, x = Official(), make_x(SHAPE)
            torch.testing.assert_close(torch.compile(model)(x), model(x))
        assert len(seen) == 1 and counters["inductor"]["eca_cuda"] == 1
        inductor.disable()
        assert torch._inductor.config.pre_grad_custom_pass is before
    finally:
        torch._inductor.config.pre_grad_custom_pass = None
