# SPDX-License-Identifier: MIT
"""Shared by the tests of the Inductor pass: fixtures that enable it, and the graph of a model after it."""

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache, run_fw_bw_and_get_code

from eca_cuda import inductor


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    inductor.enable()
    with fresh_cache():  # otherwise results of an earlier run would hide the pass
        yield
    inductor.disable()
    torch.compiler.reset()


def graph_after_the_pass(
    model: Callable[..., Any], *args: Tensor, dynamic: bool = False, tolerance: float = 1e-5
) -> torch.fx.GraphModule:
    """The graph that Inductor gets after the pass. Run directly, it must give the results of ``model``."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        inductor.rewrite(graph.graph)
        graph.graph.lint()
        graph.recompile()
        graphs.append(graph)
        return graph.forward

    expected = copy.deepcopy(model)(*(t.clone() for t in args))  # a copy, to keep the statistics of norms
    results = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*(t.clone() for t in args))
    torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance)
    return graphs[0]


def calls(graph: torch.fx.GraphModule) -> list[str]:
    nodes = [node for node in graph.graph.nodes if node.op.startswith("call")]
    return [node.target if isinstance(node.target, str) else node.target.__name__ for node in nodes]


def check_training(model: nn.Module, x: Tensor, layers: int) -> None:
    """Assert that Inductor runs this many fused operators forward and backward, with eager's output and gradients."""

    def results(y: Tensor) -> list[Any]:
        grads = [p.grad for p in model.parameters()]
        model.zero_grad()
        return [y, *grads]

    y, code = run_fw_bw_and_get_code(lambda: torch.compile(model)(x))
    found, expected = results(y), model(x)
    expected.sum().backward()
    torch.testing.assert_close(found, results(expected))
    assert counters["inductor"]["eca_cuda"] == layers
    for text, direction in zip(code, ("forward", "backward"), strict=True):
        assert len(re.findall(rf"torch\.ops\.eca_cuda\.\w+_{direction}\.default\(", text)) == layers
