# SPDX-License-Identifier: MIT
"""What only a GPU can show: streams, graphs, devices, no waiting, feature maps of more than 2^31 elements. All other
promises are tested on the GPU by the same tests as on the CPU and on the emulated device."""

import ctypes
import os

import pytest
import torch
from cases import CASES, DEFAULTS

from eca_cuda.testing import ECA, evaluate, make_x


def results(case, x, parameters):
    grad_y = make_x(x.shape, x.dtype, seed=3, device=x.device)
    return evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options).results


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a CPU-only build")
def test_torch_offers_what_is_looked_up_at_run_time():
    """csrc/cuda/torch_device.cpp asks the loaded library for the current stream; no GPU is needed to find it."""
    library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    assert library.aoti_torch_get_current_cuda_stream


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
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("less than 14 GiB of free GPU memory")
    x = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float16, device=cuda).expand(shape).contiguous()
    x[-1, -1, -1, -1] = 2
    _, parameters = case.inputs((1, 16, 1, 1), torch.float16, device=cuda)
    with torch.no_grad():
        y = case.variant.function(x, *parameters)
        corner = case.variant.reference(x[-1:, :, :, -8:], *parameters)  # the same means to within rounding
    torch.testing.assert_close(y[-1:, :, :, -8:], corner, rtol=1e-2, atol=1e-3)
