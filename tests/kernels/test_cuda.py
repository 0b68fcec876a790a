# SPDX-License-Identifier: MIT
"""Tests that need a GPU: streams, graphs, devices, asynchrony, feature maps of more than 2^31 elements. Everything else
is tested on the GPU by the same tests as on the CPU and on the emulated device."""

import itertools
import math

import pytest
import torch
from cases import CASES, DEFAULTS
from layouts import LAYOUTS

from eca_cuda._ext import _C
from eca_cuda.testing import ECA, MULTI_KERNEL, check_against_reference, evaluate, make_x, used_budget

# Of the test of clusters; vectors straddle its planes. As many samples as make some clusters wait for others to end.
SHAPE, BLOCKS = (300, 128, 14, 14), (1, 2, 4, 8, 16)

# More than 2^31 elements of samples that fit the shared memory of a cluster.
LARGE = (2800, 256, 56, 56)


def parts_of(blocks, memory):
    """The numbers of parts that positions can be cut into; only rows are cut."""
    return [parts for parts in BLOCKS if parts <= blocks and (memory == "channels_last" or parts == 1)]


def rules_for(blocks, parts):
    what = {"dtype": "float16", "n": 0, "c": SHAPE[1], "s": math.prod(SHAPE[2:])}
    what |= {"blocks": blocks, "parts": parts, "threads": 0}
    kinds = itertools.product(("forward", "backward"), ("planes", "rows"))
    return [{**what, "direction": direction, "layout": layout} for direction, layout in kinds]


def require_memory(gib):
    torch.cuda.empty_cache()  # of what earlier tests had
    if torch.cuda.mem_get_info()[0] < gib * 2**30:
        pytest.skip(f"less than {gib} GiB of free GPU memory")


def results(case, x, parameters):
    grad_y = make_x(x.shape, x.dtype, seed=3, device=x.device)
    return evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options).results


@pytest.mark.parametrize("case", CASES, ids=str)
def test_calls_do_not_wait_for_the_device(case, cuda):
    x, parameters = case.inputs((2, 16, 5, 5), device=cuda)
    grad_y = make_x(x.shape, seed=3, device=cuda)
    evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_side_stream_is_used(case, cuda):
    """A call on a stream sees what that stream has written, behind a long wait, and writes in its turn."""
    x, parameters = case.inputs((4, 64, 28, 28), device=cuda)
    expected = results(case, x, parameters)
    fresh = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        fresh.copy_(x)
        ours = results(case, fresh, parameters)
    stream.synchronize()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_two_streams_at_once_do_not_disturb_each_other(case, memory, cuda):
    x, parameters = case.inputs((64, 64, 28, 28), torch.float16, device=cuda)
    inputs = [LAYOUTS[memory](x * scale) for scale in (1, 2)]
    expected = [results(case, x, parameters) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    ours = [[], []]
    for _ in range(10):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                ours[i].append(results(case, inputs[i], parameters))
    torch.cuda.synchronize()
    for wanted, of_stream in zip(expected, ours, strict=True):
        for found in of_stream:
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_clusters_of_every_size(blocks, memory, cuda):
    """However they share out channels and positions; with a gate that has halos and sums over all channels."""
    x, grad_y = (LAYOUTS[memory](make_x(SHAPE, torch.float16, seed=seed, device=cuda)) for seed in (0, 3))
    parameters = MULTI_KERNEL.make_parameters(SHAPE[1], torch.float16, device=cuda)
    try:
        for parts in parts_of(blocks, memory):
            _C.set_tuning(rules_for(blocks, parts))
            check_against_reference(MULTI_KERNEL, x, parameters, grad_y=grad_y)
    finally:
        _C.set_tuning([])


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_calls_can_be_captured_in_a_graph(case, cuda):
    x, parameters = case.inputs((4, 64, 14, 14), torch.float16, device=cuda)
    static = torch.zeros_like(x)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        results(case, static, parameters)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    grad_y = make_x(x.shape, x.dtype, seed=3, device=cuda)
    with torch.cuda.graph(graph):
        captured = evaluate(case.variant.function, static, parameters, grad_y=grad_y).results
    for scale in (1, 2):
        static.copy_(x * scale)
        graph.replay()
        torch.cuda.synchronize()
        expected = results(case, x * scale, parameters)
        assert all(torch.equal(captured[name], expected[name]) for name in expected)


def test_the_device_of_x_is_used_and_the_current_one_is_left_alone(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    x, parameters = DEFAULTS[0].inputs((2, 8, 5, 5), device="cuda:1")
    y = ECA.function(x, *parameters)
    assert y.device == x.device and torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match="weight: expected a tensor on the device of x, cuda:1"):
        ECA.function(x, parameters[0].to("cuda:0"))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_more_than_31_bits_of_elements(case, cuda):
    shape = (3, 16, 6800, 6800)  # 2.2e9 elements
    require_memory(14)
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float16, device=cuda).expand(shape).contiguous()
    x[-1, -1, -1, -1] = 2
    _, parameters = case.inputs((1, 16, 1, 1), torch.float16, device=cuda)
    with torch.no_grad():
        y = case.variant.function(x, *parameters)
        corner = case.variant.reference(x[-1:, :, :, -8:], *parameters)  # the same means to within rounding
    torch.testing.assert_close(y[-1:, :, :, -8:], corner, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_gradients_of_more_than_31_bits_of_elements(case, cuda):
    """Of constant maps the gradient does not depend on the number of positions, so small ones say what it must be."""
    require_memory(24)
    _, parameters = case.inputs((1, 16, 1, 1), torch.float16, device=cuda)

    def grad_x(side):
        x, grad_y = (torch.full((3, 16, side, side), value, dtype=torch.float16, device=cuda) for value in (0.5, 2.0))
        x.requires_grad_()
        (grad,) = torch.autograd.grad(case.variant.function(x, *parameters), x, grad_y)
        return grad[:, :, -1, -1].clone()

    one_rounding = torch.finfo(torch.float16).eps
    torch.testing.assert_close(grad_x(6800), grad_x(8), rtol=one_rounding, atol=0)  # 2.2e9 elements


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "offset"])
def test_samples_beyond_31_bits_of_elements_have_their_own_results(memory, cuda):
    """No two samples are alike, so one that is read or written in another's place is seen; the first, the middle and
    the last are held against the reference, which sees nothing of the others. At an offset, two-phase."""
    require_memory(24)  # for maps of 4.2 GiB: x, grad_y, y and grad_x, or before that a third beside two

    def make():
        x = torch.randn(LARGE, dtype=torch.float16, device=cuda)
        x += torch.randn(*LARGE[:2], 1, 1, dtype=torch.float16, device=cuda)  # means that tell samples apart
        return LAYOUTS[memory](x)

    def few(x):  # one by one: views of single samples have small indices
        return torch.stack([x[n] for n in (0, LARGE[0] // 2, LARGE[0] - 1)])

    x, grad_y = make().requires_grad_(), make()
    parameters = ECA.make_parameters(LARGE[1], torch.float16, device=cuda)
    y = ECA.function(x, *parameters)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    ours = {"y": few(y.detach()), "grad_x": few(grad_x)}
    eager, exact = (
        evaluate(ECA.reference, few(x.detach()), parameters, grad_y=few(grad_y), dtype=dtype).results
        for dtype in (None, torch.float64)
    )
    for name, result in ours.items():
        used_budget(name, result, eager[name], exact[name], LARGE[1] + math.prod(LARGE[2:]))
