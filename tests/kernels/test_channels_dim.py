# SPDX-License-Identifier: MIT
"""``channels_dim=-1``: tokens ``[N, L, C]`` and ``[N, H, W, C]`` in every kind of call, without a copy."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

import eca_cuda
from eca_cuda.testing import ECA, channels_last, evaluate, make_x

SHAPE = (2, 20, 7, 5)
SHAPES = [(3, 20, 13), SHAPE, (2, 20, 3, 5, 4)]


def tokens(x: Tensor) -> Tensor:
    """The map ``x`` with the channels as the last dimension, also in memory."""
    return x.movedim(1, -1).contiguous()


def on_tokens(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``function`` with ``channels_dim=-1``, as a function of maps."""

    def on_maps(x: Tensor, *parameters: Tensor, residual: Tensor | None = None, **options: Any) -> Tensor:
        moved = None if residual is None else residual.movedim(1, -1)
        return function(x.movedim(1, -1), *parameters, residual=moved, channels_dim=-1, **options).movedim(-1, 1)

    return on_maps


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_specification_differs_in_nothing_else(case, shape):
    x, parameters = case.inputs(shape, torch.float64)
    options = {"residual": make_x(shape, torch.float64, seed=2), "activation": "relu"} | case.options
    expected = case.variant.reference(x, *parameters, **options)
    torch.testing.assert_close(on_tokens(case.variant.reference)(x, *parameters, **options), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option_is_within_the_error_budget(case, dtype, shape, check, device):
    x, parameters = case.inputs(shape, dtype, device=device)
    residual, grad_y = (channels_last(make_x(shape, dtype, seed=seed, device=device)) for seed in (2, 3))
    options = {"residual": residual, "grad_y": grad_y, "activation": "relu"} | case.options
    check(case.variant, channels_last(x), parameters, function=on_tokens(case.variant.function), **options)


def allocations(call: Callable[[], Any]) -> list[int]:
    """The bytes that torch's allocator allocated and freed, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    return [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]


# One position, one channel, one sample: strides of size-1 dimensions are meaningless.
@pytest.mark.parametrize("shape", [*SHAPES, (2, 20, 1), (2, 1, 7), (1, 20, 7)], ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_it_is_the_call_of_a_channels_last_map_without_a_copy(case, shape):
    """The same bits and allocations, in inference and in training; what comes out is as contiguous as x."""
    _, parameters = case.inputs(shape)
    x, residual, grad_y = (tokens(make_x(shape, seed=seed)) for seed in range(3))
    views = [t.movedim(-1, 1) for t in (x, residual, grad_y)]

    def run(x: Tensor, residual: Tensor, grad_y: Tensor | None, **options: Any) -> dict[str, Tensor]:
        options |= {"residual": residual, "grad_y": grad_y}
        return evaluate(case.variant.function, x, parameters, **options).results

    assert allocations(x.clone)[0] == 4 * x.numel()
    for last in (None, grad_y):
        of_tokens = partial(run, x, residual, last, channels_dim=-1)
        of_views = partial(run, *views[:2], None if last is None else views[2])
        expected = of_views()
        for name, found in of_tokens().items():
            is_map = found.shape == x.shape
            assert torch.equal(found, expected[name].movedim(1, -1) if is_map else expected[name]), name
            assert not is_map or found.stride() == x.stride(), name
        assert allocations(of_tokens) == allocations(of_views)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives(case, device):
    """First and second, forward and reverse; under transforms of torch.func."""
    x, parameters = case.inputs((2, 4, 3), torch.float64, device=device)
    leaves = [t.detach().requires_grad_() for t in (tokens(x), *parameters)]
    function = partial(case.variant.function, channels_dim=-1, **case.options)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, leaves)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        theirs = partial(case.variant.reference, channels_dim=-1, **case.options)
        torch.testing.assert_close(transform(function)(*leaves), transform(theirs)(*leaves))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_the_output_may_be_written_to(case, device):
    """As blocks do that add the shortcut in place; ``y`` is a view."""
    x, parameters = case.inputs(SHAPE, torch.float64, device=device)
    t, w = tokens(x).requires_grad_(), parameters
    (found,) = torch.autograd.grad(case.variant.function(t, *w, channels_dim=-1).add_(t).square().sum(), t)
    (expected,) = torch.autograd.grad((case.variant.reference(t, *w, channels_dim=-1) + t).square().sum(), t)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_lengths_count_tokens(case, check, device):
    x, parameters = case.inputs((4, 9, 13), device=device)
    lengths = torch.tensor([13, 5, 1, 8], device=device)
    t = tokens(x)
    y = case.variant.function(t, *parameters, lengths=lengths, channels_dim=-1)
    for n, length in enumerate(lengths.tolist()):
        alone = case.variant.function(t[n : n + 1, :length], *parameters, channels_dim=-1)
        torch.testing.assert_close(y[n : n + 1, :length], alone)
    assert y.shape == t.shape
    function = partial(case.variant.reference, lengths=lengths)
    torch.testing.assert_close(on_tokens(function)(x, *parameters), function(x, *parameters))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_place(shape, check, device):
    x, parameters = DEFAULTS[0].inputs(shape, device=device)

    def on_a_copy(x: Tensor, *parameters: Tensor, residual: None, **options: Any) -> Tensor:
        copy = tokens(x)
        y = eca_cuda.eca_(copy, *parameters, channels_dim=-1, **options)
        assert y is copy
        return y.movedim(-1, 1)

    check(ECA, x, parameters, function=on_a_copy, activation="relu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype, device):
    x, (weight,) = DEFAULTS[0].inputs(SHAPE, device=device)
    with torch.autocast(device, dtype=dtype):
        y = eca_cuda.eca(tokens(x), weight.to(dtype), channels_dim=-1)
    assert torch.equal(y, eca_cuda.eca(tokens(x), weight.to(dtype).float(), channels_dim=-1))


class Attention(nn.Module):
    """A layer of tokens with the variant's function."""

    def __init__(self, case: Any) -> None:
        super().__init__()
        self.function = partial(case.variant.function, activation="relu", channels_dim=-1)
        self.given = nn.ParameterList(case.inputs(SHAPE)[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *[p for p in self.given], residual=x)  # noqa: C416 - torch 2.12 traces no *parameters


# One variant, as all share the code and tracing takes seconds.
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("mode", ["fused", "inline"])
@pytest.mark.parametrize("case", DEFAULTS[:1], ids=str)
def test_compiled_it_is_one_graph_for_all_sizes(case, mode, grad, device):
    torch.compiler.reset()
    layer, counter = Attention(case).to(device, torch.float64), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    with eca_cuda.compile_mode(mode), torch.set_grad_enabled(grad):
        for shape in [(2, 20, 3, 5), (4, 20, 7, 6), (3, 20, 9, 8)]:
            results = []
            for run in (layer, compiled):
                x = tokens(make_x(shape, torch.float64, device=device)).requires_grad_()
                y = run(x)
                results.append([y, *(torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) if grad else ())])
                assert y.is_contiguous()
            torch.testing.assert_close(*results)
    assert counter.frame_count == 1


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_exported_it_keeps_its_free_sizes(grad):
    layer = Attention(DEFAULTS[0])
    free = ({0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("tokens", min=1, max=512)},)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (torch.randn(2, 13, 20),), dynamic_shapes=free)
        x = torch.randn(5, 9, 20)
        torch.testing.assert_close(program.module()(x), layer(x))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("eca_cuda.") for name in names) == (not grad)


def test_onnx_has_plain_operators_and_onnxruntime_agrees():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    layer = Attention(DEFAULTS[0]).eval()
    free = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")},)
    program = torch.onnx.export(layer, (torch.randn(2, 13, 20),), dynamo=True, dynamic_shapes=free, verbose=False)
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(5, 9, 20)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), layer(x).detach())


class Plain(nn.Module):
    """Calls the functions by their names, as torch.fx wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return eca_cuda.functional.eca(x, self.weight, residual=x, channels_dim=-1)


def test_fx_records_the_call():
    layer, x = Plain(), torch.randn(2, 13, 20)
    traced = torch.fx.symbolic_trace(layer)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [eca_cuda.eca]
    assert torch.equal(traced(x), layer(x))


RANK = "x: expected shape [N, *spatial, C] with 1 to 3 spatial dimensions, got shape "
T, LENGTHS = torch.ones(2, 3, 5, 6), torch.ones(2, dtype=torch.int64)
BAD: dict[str, tuple[type[Exception], str, Any, dict[str, Any]]] = {
    "another dimension": (ValueError, "channels_dim: expected one of 1, -1, got 2", T, {"channels_dim": 2}),
    "by its name": (ValueError, "channels_dim: expected one of 1, -1, got 'last'", T, {"channels_dim": "last"}),
    "none": (ValueError, "channels_dim: expected one of 1, -1, got None", T, {"channels_dim": None}),
    "rank 2": (ValueError, RANK + "(5, 6)", T[0, 0], {}),
    "rank 0": (ValueError, RANK + "()", T[0, 0, 0, 0], {}),
    "a list": (TypeError, "x: expected a Tensor, got list", [1.0], {}),
    "sparse": (ValueError, "x: expected a dense (strided) tensor, got layout torch.sparse_coo", T.to_sparse(), {}),
    "residual": (
        ValueError,
        "residual: expected shape (2, 3, 5, 6), got shape (2, 6, 3, 5)",
        T,
        {"residual": T.movedim(-1, 1)},
    ),
    "no residual": (TypeError, "residual: expected a Tensor, got int", T, {"residual": 1}),
    "lengths": (
        ValueError,
        "lengths: expected x of shape [N, L, C], got x of shape (2, 3, 5, 6)",
        T,
        {"lengths": LENGTHS},
    ),
    "too long": (
        ValueError,
        "lengths: expected values in [0, 3], got values in [5, 5]",
        T[:, :, 0],
        {"lengths": 5 * LENGTHS},
    ),
}


@pytest.mark.parametrize("error, message, x, options", BAD.values(), ids=BAD)
def test_messages_show_the_shapes_that_were_given(error, message, x, options):
    def refused(function: Callable[..., Tensor], *given: Any) -> None:
        with pytest.raises(error, check=lambda e: str(e) == message):
            function(*given, **{"channels_dim": -1} | options)

    for case in DEFAULTS:
        refused(case.variant.function, x, *case.inputs((2, 6, 3, 5))[1])
    if not {"residual", "lengths"} & options.keys():
        refused(eca_cuda.eca_, x, torch.ones(1, 1, 3))
