# SPDX-License-Identifier: MIT
"""``compile_mode``: the fused operator, or plain operators that Inductor fuses with their neighbours."""

import threading
from collections.abc import Iterator

import pytest
import torch
from cases import CASES, DEFAULTS
from layouts import LAYOUTS
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import eca_cuda
from eca_cuda import compiling
from eca_cuda.testing import channels_last, make_x

SHAPE = (2, 20, 3, 5)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    eca_cuda.compile_mode("auto")
    torch.compiler.reset()


@pytest.mark.parametrize("case, memory", [*((c, "contiguous") for c in CASES), (CASES[0], "channels_last")], ids=str)
def test_inline_is_within_the_error_budget_of_every_option(case, memory, check, device):
    """Forward and backward, in one graph."""
    x, parameters = case.inputs(SHAPE, device=device)
    residual, grad_y = (LAYOUTS[memory](make_x(SHAPE, seed=seed, device=device)) for seed in (2, 3))
    options = {"residual": residual, "grad_y": grad_y, "activation": "relu"} | case.options
    compiled = torch.compile(case.variant.function, backend="aot_eager", fullgraph=True)
    with eca_cuda.compile_mode("inline"):
        check(case.variant, LAYOUTS[memory](x), parameters, function=compiled, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 13), (2, 9, 3, 5, 7), (1, 3, 4, 4)], ids=str)
def test_inline_is_within_the_error_budget_of_every_dtype_and_rank(shape, dtype, check, device):
    x, parameters = DEFAULTS[0].inputs(shape, dtype, device=device)
    grad_y = make_x(shape, dtype, seed=3, device=device)
    compiled = torch.compile(eca_cuda.eca, backend="aot_eager", fullgraph=True)
    with eca_cuda.compile_mode("inline"):
        check(DEFAULTS[0].variant, x, parameters, function=compiled, grad_y=grad_y)


class Block(nn.Module):
    """The layer and its neighbours in a ResNet at inference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.attention = eca_cuda.EfficientChannelAttention(16, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.attention(self.norm(self.conv(x))) + x)


@pytest.mark.parametrize("mode, operators, kernels", [("fused", 1, 2), ("inline", 0, 1)])
def test_only_inline_lets_inductor_fuse_across_the_layer(mode, operators, kernels):
    """channels_last on the CPU: batch norm, the layer, the addition and the relu in one kernel, or one on each side."""
    model = Block().eval().to(memory_format=torch.channels_last)
    x = channels_last(make_x((2, 16, 7, 7)))
    with eca_cuda.compile_mode(mode), torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)
        y, (code,) = run_and_get_code(compiled, x)
        torch.testing.assert_close(y, model(x))
    assert y.stride() == x.stride()
    assert code.count("torch.ops.eca_cuda.eca_infer.default(") == operators
    assert code.count("= async_compile.cpp_pybinding(") == kernels
    assert code.count("extern_kernels.convolution(") == 1


def test_the_mode_at_the_call_counts_and_is_restored(device):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eca_cuda.EfficientChannelAttention(20).to(device), backend=counter, dynamic=True)

    def graphs(height: int) -> list[bool]:
        """For every graph so far, whether it contains the fused operator."""
        with torch.no_grad():
            compiled(make_x((2, 20, height, 5), device=device))
        return [any("eca_cuda" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]

    eca_cuda.compile_mode("fused")
    assert graphs(3) == [True]
    with eca_cuda.compile_mode("inline"):
        assert graphs(4) == [True, False]
        assert graphs(6) == [True, False], "another shape needs no other graph"
        with eca_cuda.compile_mode("fused"):
            assert graphs(7) == [True, False]
        assert graphs(8) == [True, False]
    assert graphs(9) == [True, False]
    eca_cuda.compile_mode("inline")
    assert graphs(11) == [True, False]


@pytest.mark.parametrize("wanted", ["x", "weight", "nothing", "no grad mode"])
def test_auto_is_inline_for_inference_on_a_cpu_only(wanted, device):
    counter = CompileCounterWithBackend("aot_eager")
    layer, x = eca_cuda.EfficientChannelAttention(20).to(device), make_x((2, 20, 3, 5), device=device)
    layer.requires_grad_(wanted in ("weight", "no grad mode"))
    with torch.set_grad_enabled(wanted != "no grad mode"):
        torch.compile(layer, backend=counter)(x.requires_grad_(wanted == "x"))
    modules = [m for graph in counter.graphs for m in graph.modules() if isinstance(m, torch.fx.GraphModule)]
    fused = any("eca_cuda" in str(node.target) for m in modules for node in m.graph.nodes)
    assert fused == (device != "cpu" or wanted in ("x", "weight"))
    with torch.no_grad():
        program = torch.export.export(layer, (x.detach(),))
    assert any("eca_cuda" in str(node.target) for node in program.graph.nodes), "export keeps the operator"


def test_the_mode_is_restored_after_an_error_too():
    with pytest.raises(KeyError), eca_cuda.compile_mode("inline"):
        assert compiling.mode() == "inline"
        raise KeyError
    assert compiling.mode() == "auto"


def test_each_thread_has_its_own_mode(device):
    """Two threads with overlapping blocks call one compiled layer: each gets its own version of it."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eca_cuda.EfficientChannelAttention(20).to(device), backend=counter, fullgraph=True)
    x, steps = make_x((2, 20, 3, 5), device=device), threading.Barrier(2, timeout=120)
    seen: dict[str, list[str]] = {"fused": [], "inline": []}

    def run(mode: compiling.Mode) -> None:
        seen[mode].append(compiling.mode())
        if mode == "inline":
            steps.wait()
        with torch.no_grad(), eca_cuda.compile_mode(mode):
            compiled(x)
            if mode == "fused":
                steps.wait()  # the other thread enters its block later, and leaves it later
            seen[mode].append(compiling.mode())
        steps.wait()
        seen[mode].append(compiling.mode())

    with eca_cuda.compile_mode("inline"):
        threads = [threading.Thread(target=run, args=(mode,)) for mode in ("fused", "inline")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert compiling.mode() == "inline"
    assert seen == {mode: ["auto", mode, "auto"] for mode in seen}
    graphs = [any("eca_cuda" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]
    assert graphs == [True, False]


def test_a_mode_can_be_entered_again():
    mode = eca_cuda.compile_mode("inline")
    for _ in range(2):
        with mode:
            with eca_cuda.compile_mode("fused"):
                assert compiling.mode() == "fused"
            assert compiling.mode() == "inline"
        assert compiling.mode() == "auto"


def test_inline_exports_a_program_without_our_operators(device):
    layer, x = eca_cuda.BidirectionalECA(32).to(device), make_x((2, 32, 3, 5), device=device)
    with eca_cuda.compile_mode("inline"):
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert not any("eca_cuda" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_eager_calls_do_not_depend_on_the_mode(device):
    layer, x = eca_cuda.EfficientChannelAttention(20).to(device), make_x(SHAPE, device=device)
    expected = layer(x)
    with eca_cuda.compile_mode("inline"):
        assert torch.equal(layer(x), expected)


def test_bad_arguments_are_named_in_both_modes(device):
    x, weight = make_x(SHAPE, device=device), torch.ones(1, 1, 4, device=device)
    for mode in ("fused", "inline"):
        with eca_cuda.compile_mode(mode), pytest.raises(Exception, match=r"weight: expected shape \(1, 1, k\)"):
            torch.compile(eca_cuda.eca, backend="aot_eager")(x, weight)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode: expected one of 'auto', 'fused', 'inline', got 'fast'"):
        eca_cuda.compile_mode("fast")
