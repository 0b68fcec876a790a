# SPDX-License-Identifier: MIT
"""Compiled and exported models run the fused operators in one graph and give what eager gives."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, Case
from functorch.compile import make_boxed_func
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import eca_cuda
from eca_cuda.testing import channels_last, evaluate, make_x

SHAPE = (2, 20, 3, 5)
MEMORY = ["contiguous", "channels_last"]


@pytest.fixture(autouse=True)
def fused_and_nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    eca_cuda.compile_mode("fused")
    yield
    eca_cuda.compile_mode("auto")
    torch.compiler.reset()


def training_call(
    case: Case, memory: str, device: str, shape: tuple[int, ...] = SHAPE
) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    x, parameters = case.inputs(shape, device=device)
    residual, grad_y = (LAYOUTS[memory](make_x(shape, seed=seed, device=device)) for seed in (2, 3))
    return LAYOUTS[memory](x), parameters, {"residual": residual, "grad_y": grad_y, "activation": "relu"} | case.options


# The backend aot_eager traces like inductor and runs the graph as it is; one case below uses inductor.
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(
    "case, shape",
    [*((case, SHAPE) for case in CASES), *((CASES[0], shape) for shape in [(2, 20, 7), (2, 20, 2, 3, 4)])],
    ids=str,
)
def test_compiled_training_equals_eager(case, shape, memory, device):
    """Every option; one to three spatial dimensions."""
    x, parameters, options = training_call(case, memory, device, shape)
    compiled = torch.compile(case.variant.function, backend="aot_eager", fullgraph=True)
    expected = evaluate(case.variant.function, x, parameters, **options).results
    results = evaluate(compiled, x, parameters, **options).results
    assert all(torch.equal(results[name], expected[name]) for name in expected)
    assert results["y"].stride() == expected["y"].stride()


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_compiled_inference_equals_eager(case, memory, device):
    x, parameters, options = training_call(case, memory, device)
    del options["grad_y"]
    compiled = torch.compile(case.variant.function, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        y, expected = (f(x, *parameters, **options) for f in (compiled, case.variant.function))
    assert torch.equal(y, expected) and y.stride() == expected.stride()


def recorder(names: list[str]) -> Callable[..., Any]:
    """A backend that runs the graphs as they are and records their operators."""

    def compiler(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_graphs_hold_the_fused_operators_and_little_else(case, device):
    x, parameters, options = training_call(case, "contiguous", device)
    names: list[str] = []
    evaluate(torch.compile(case.variant.function, backend=recorder(names), fullgraph=True), x, parameters, **options)
    fused = [name for name in names if name.startswith("eca_cuda.")]
    assert fused == [f"eca_cuda.{case.variant.name}_{direction}.default" for direction in ("forward", "backward")]
    assert not [name for name in names if name.startswith("aten.")]

    torch.compiler.reset()
    names.clear()
    with torch.no_grad():
        torch.compile(case.variant.function, backend=recorder(names), fullgraph=True)(x, *parameters)
    assert names == [f"eca_cuda.{case.variant.name}_infer.default"]


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_dynamic_shapes_share_one_graph(case, grad, device):
    """One graph per layout, for any batch, height and width."""
    layer = case.variant.module(20).to(device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for shape in [(2, 20, 3, 5), (4, 20, 7, 6), (3, 20, 9, 8), (5, 20, 2, 11)]:
        x = make_x(shape, device=device)
        with torch.set_grad_enabled(grad):
            assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1


class Block(nn.Module):
    """The layer after a convolution, before the addition of the shortcut and a relu."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.conv = nn.Conv2d(20, 20, 3, padding=1)
        self.norm = nn.BatchNorm2d(20)
        self.attention = case.variant.module(20)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.norm(self.conv(x)), x, "relu")


def test_inductor_trains_a_block_as_eager_does(device):
    """channels_last, which inductor keeps only if the operator declares it."""
    model = Block(DEFAULTS[0]).to(device)
    x = channels_last(make_x(SHAPE, device=device))
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        leaf = x.detach().requires_grad_()
        y = run(leaf)
        y.square().mean().backward()
        results.append([y.detach(), leaf.grad, *(p.grad.clone() for p in model.parameters())])
        assert y.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_export_without_gradients_keeps_the_fused_operator_and_dynamic_shapes(case, device):
    layer = case.variant.module(20).to(device).eval()
    batch, height = torch.export.Dim("batch", min=1), torch.export.Dim("height", min=1)
    with torch.no_grad():
        program = torch.export.export(layer, (make_x(SHAPE, device=device),), dynamic_shapes=({0: batch, 2: height},))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith(f"eca_cuda.{case.variant.name}_") for name in names) == 1
    x = make_x((5, 20, 8, 5), device=device)
    with torch.no_grad():
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_program_exported_with_gradients_can_be_trained(case, strict, device):
    """The raw operators have no gradients: with one of them in the program, earlier parameters would get none."""
    model = nn.Sequential(nn.Conv2d(3, 20, 1), case.variant.module(20)).to(device)
    # torch 2.10 exports no convolution whose output may have more than 2^31 elements.
    free = ({0: torch.export.Dim("batch", min=1, max=64), 2: torch.export.Dim("height", min=1, max=512)},)
    program = torch.export.export(model, (make_x((2, 3, 3, 5), device=device),), dynamic_shapes=free, strict=strict)
    assert not any("eca_cuda" in str(node.target) for node in program.graph.nodes)
    x, results = make_x((5, 3, 8, 5), device=device), []
    compiled = torch.compile(program.module(), backend="aot_eager", fullgraph=True)
    for trained in (model, program.module(), compiled):
        loss = trained(x).square().mean()
        results.append([loss, *torch.autograd.grad(loss, list(trained.parameters()))])
    torch.testing.assert_close(results[1:], [results[0]] * 2)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_tensor_given_twice_gets_both_gradients(case, device):
    """``residual=x`` and tied weights. torch.compile(Function.apply)(x, x) drops a gradient or is refused."""
    x, parameters = case.inputs(SHAPE, torch.float64, device=device)
    distinct = list({p.shape: p for p in parameters}.values())
    places = [[p.shape for p in distinct].index(p.shape) for p in parameters]

    def function(x: Tensor, *given: Tensor) -> Tensor:
        return case.variant.function(x, *[given[place] for place in places], residual=x)

    found = []
    for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        leaves = [t.detach().requires_grad_() for t in (x, *distinct)]
        found.append(torch.autograd.grad(run(*leaves).square().sum(), leaves))
    torch.testing.assert_close(*found)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f: torch.func.grad(lambda x: f(x).pow(3).sum()),
    "vmap": lambda f: torch.vmap(lambda x: f(x[None])),
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x + 1,)),
    "jacrev": lambda f: torch.func.jacrev(lambda x: f(x).sum((2, 3))),
    "per-sample-grad": lambda f: torch.vmap(torch.func.grad(lambda x: f(x[None]).pow(3).sum())),
}


# One variant, as all share the tested code.
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("case", DEFAULTS[:1], ids=str)
def test_compiled_func_transforms_are_right(case, transform, device):
    """Tracing a Function under a transform is known to go wrong silently."""
    x, parameters = case.inputs((2, 4, 2, 3), torch.float64, device=device)
    make = TRANSFORMS[transform]
    ours = make(lambda x: case.variant.function(x, *parameters))
    theirs = make(lambda x: case.variant.reference(x, *parameters))
    torch.testing.assert_close(torch.compile(ours, backend="aot_eager")(x), theirs(x))
