# SPDX-License-Identifier: MIT
"""Under autocast y has the dtype of x, gates stay in float32, parameters may be float32 or either half dtype.

For x in float32 or autocast's dtype, that is eager's dtype too. Under autocast to one half dtype, eager converts the
other one to float32, and refuses float64; here both keep their dtype.
"""

import originals
import pytest
import torch
from cases import CASES, DEFAULTS, DTYPES, Case
from torch import Tensor, nn

import eca_cuda
from eca_cuda.testing import ECA, evaluate, make_x

HALF = (torch.float16, torch.bfloat16)
SHAPE = (2, 20, 3, 5)


def inputs(case: Case, dtype: torch.dtype, device: str) -> tuple[Tensor, list[Tensor]]:
    """``x``, float32 parameters (float64 for float64), as a model under autocast has them."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return case.inputs(SHAPE, dtype, device=device, parameter_dtype=wide)


@pytest.mark.parametrize("autocast", HALF, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_changes_nothing(case, dtype, autocast, device):
    x, parameters = inputs(case, dtype, device)
    grad_y = make_x(SHAPE, dtype, seed=3, device=device)
    plain = evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options).results
    with torch.autocast(device, dtype=autocast):
        under = evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options).results
    assert all(torch.equal(under[name], plain[name]) for name in plain)
    assert under["y"].dtype == dtype
    assert [under[f"grad_parameter{i}"].dtype for i in range(len(parameters))] == [p.dtype for p in parameters]


@pytest.mark.parametrize("autocast", HALF, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, None], ids=["float32", "same-half"])
@pytest.mark.parametrize("case", [c for c in DEFAULTS if hasattr(originals, c.variant.module.__name__)], ids=str)
def test_the_dtype_under_autocast_is_eagers(case, dtype, autocast, device):
    """Eager is the original layer, run with the same x under the same autocast.

    Exception: for a half x on a GPU, autocast computes the softmax and the sums of two variants in float32, so eager's
    y is float32 (seen on an H200, torch 2.11). The fused y has the dtype of x.
    """
    x = make_x(SHAPE, dtype or autocast, device=device)
    name = case.variant.module.__name__
    with torch.autocast(device, dtype=autocast):
        theirs = getattr(originals, name)(20).to(device)(x)
        ours = case.variant.module(20, device=device)(x)
    widened = device == "cuda" and dtype is None and case.variant is not ECA
    assert theirs.dtype == (torch.float32 if widened else x.dtype)
    assert ours.dtype == x.dtype


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_training_under_autocast_gives_float32_gradients(case, device):
    """A half map from a convolution, float32 master weights, and a backward pass outside of autocast."""
    model = nn.Sequential(nn.Conv2d(3, 20, 3), case.variant.module(20), nn.Conv2d(20, 4, 1)).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = model(make_x((2, 3, 9, 9), device=device))
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)
    assert all(p.grad.count_nonzero() for p in model[0].parameters())


@pytest.mark.parametrize("autocast", HALF, ids=str)
@pytest.mark.parametrize("parameter_dtype", HALF, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_parameters_go_with_every_map(case, dtype, parameter_dtype, autocast, device):
    """Half parameters give the bits of the same values in float32, also for float32 maps under autocast."""
    x, parameters = case.inputs(SHAPE, dtype, device=device, parameter_dtype=parameter_dtype)
    grad_y = make_x(SHAPE, dtype, seed=3, device=device)

    def results(parameters: list[Tensor]) -> dict[str, Tensor]:
        with torch.autocast(device, dtype=autocast):
            return evaluate(case.variant.function, x, parameters, grad_y=grad_y, **case.options).results

    half, wide = results(parameters), results([p.float() for p in parameters])
    for name in half:
        expected = wide[name].to(parameter_dtype if name.startswith("grad_parameter") else dtype)
        assert torch.equal(half[name], expected) and half[name].dtype == expected.dtype


@pytest.mark.parametrize("mode", ["fused", "inline"])
def test_half_parameters_go_with_float32_maps_in_every_path(mode):
    """Compiled, under a transform, with lengths, in place; and not without autocast, nor with float64."""
    torch.compiler.reset()
    layer = eca_cuda.EfficientChannelAttention(20, bias=True, dtype=torch.bfloat16)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x, lengths = make_x((2, 20, 15)), torch.tensor([15, 15])
    with torch.autocast("cpu", dtype=torch.bfloat16), eca_cuda.compile_mode(mode):
        y = layer(x)
        found = [compiled(x), torch.vmap(lambda one: layer(one[None])[0])(x), layer(x, lengths=lengths)]
        with torch.no_grad():
            found.append(eca_cuda.eca_(x.clone(), layer.conv1.weight, layer.conv1.bias))
        for result in found:
            torch.testing.assert_close(result, y)
        with pytest.raises(TypeError, match=r"weight: expected torch\.float64"):
            layer(x.double())
    with pytest.raises(TypeError, match=r"weight: expected torch\.float32"):
        layer(x)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_composite_paths_ignore_autocast_too(case, device):
    """Second derivatives and torch.func run operators of torch that autocast affects; the bits must not change."""
    x, parameters = inputs(case, torch.bfloat16, device)
    grad_y = make_x(SHAPE, torch.bfloat16, seed=3, device=device)

    def both_paths(enabled: bool) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            y = case.variant.function(leaf, *parameters)
            mapped = torch.vmap(lambda one: case.variant.function(one[None], *parameters))(x)
        (first,) = torch.autograd.grad(y, leaf, grad_y, create_graph=True)
        return [mapped, first, torch.autograd.grad(first, leaf, grad_y)[0]]

    assert all(map(torch.equal, both_paths(True), both_paths(False)))
