# SPDX-License-Identifier: MIT
"""A layer calls its submodules if they were changed or replaced; otherwise it never calls them."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import eca_cuda
from eca_cuda import BidirectionalECA, DynamicMultiKernelECA, EfficientChannelAttention
from eca_cuda.testing import channels_last, make_x

C = 20
LAYERS = {
    "eca": partial(EfficientChannelAttention, C),
    "eca-options": partial(EfficientChannelAttention, C, padding_mode="circular", gate="hard_sigmoid", bias=True),
    "multi": partial(DynamicMultiKernelECA, C),
    "multi-across": partial(DynamicMultiKernelECA, C, cross_channel=True, padding_mode="circular"),
    "bidirectional": partial(BidirectionalECA, C),
    "bidirectional-single": partial(BidirectionalECA, C, final_sigmoid=False, gate="hard_sigmoid"),
}
layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
PATHS = [(make, path) for make in LAYERS.values() for path, _ in make().named_modules() if path]


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    torch.compiler.reset()


class Other(nn.Module):
    """A stand-in for an adapter: another class around the module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def replaced(layer: nn.Module, path: str, make=Other) -> nn.Module:
    layer = copy.deepcopy(layer)
    layer.set_submodule(path, make(layer.get_submodule(path)))
    return layer


def some(layer: nn.Module) -> nn.Module:
    """``layer`` with the first submodule replaced."""
    return replaced(layer, next(iter(layer._modules)))


def maps(*shape: int) -> tuple[Tensor, Tensor]:
    return make_x(shape), make_x(shape, seed=2)


# Unchanged layers are fused, or the following tests would show nothing.


@layers
def test_a_plain_layer_never_calls_them(make, monkeypatch):
    layer = make()
    for kind in (nn.Conv1d, nn.Linear, nn.Softmax, nn.Sigmoid):
        monkeypatch.setattr(kind, "forward", lambda *_: pytest.fail("called"))
    layer(make_x((2, C, 3, 5)))


@pytest.mark.parametrize("make, path", PATHS)
def test_a_replaced_submodule_is_called(make, path):
    layer, (x, residual) = make(), maps(2, C, 3, 5)
    model = replaced(layer, path)
    torch.testing.assert_close(model(x, residual, "relu"), layer(x, residual, "relu"))
    zeroed = replaced(layer, path, lambda m: nn.Sequential(m, nn.Threshold(1e9, 0)))
    assert not torch.equal(zeroed(x), layer(x))


@pytest.mark.parametrize("how", ["hook", "pre-hook", "backward hook", "backward pre-hook", "forward"])
@pytest.mark.parametrize("make, path", PATHS)
def test_hooks_and_a_forward_on_the_instance_run(make, path, how):
    layer, x, seen = make(), make_x((2, C, 3, 5)).requires_grad_(), []
    if path == "sigmoid" and isinstance(layer.sigmoid, nn.Identity) and how.startswith("backward"):
        pytest.skip("an identity has no node in the graph of autograd")
    expected, module = layer(x), layer.get_submodule(path)
    handle = None
    if how == "forward":
        forward = module.forward
        module.forward = lambda *a: seen.append(1) or forward(*a)
    else:
        register = {
            "hook": module.register_forward_hook,
            "pre-hook": module.register_forward_pre_hook,
            "backward hook": module.register_full_backward_hook,
            "backward pre-hook": module.register_full_backward_pre_hook,
        }
        handle = register[how](lambda *_: seen.append(1))
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert seen == [1]
    if handle:
        handle.remove()
        assert torch.equal(layer(x), expected) and seen == [1]


CHANGES = {
    "dilation": lambda m: setattr(m.conv1, "dilation", (2,)) or setattr(m.conv1, "padding", (2,)),
    "padding_mode": lambda m: setattr(m.conv1, "padding_mode", "reflect"),
    "gate": lambda m: setattr(m, "sigmoid", nn.Hardsigmoid()),
    "conv": lambda m: setattr(m, "conv1", nn.Conv1d(1, 1, 5, padding=4, dilation=2, bias=False)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_options_of_a_submodule_take_effect(change):
    layer, x = EfficientChannelAttention(C), make_x((2, C, 3, 5))
    change(layer)
    z = layer.conv1(x.mean((2, 3)).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(layer(x), x * layer.sigmoid(z)[..., None, None])


def test_linear_layers_without_a_bias_and_convolutions_with_one():
    layer, x = DynamicMultiKernelECA(C), make_x((2, C, 3, 5))
    layer.weight_net[0].bias.data.zero_()
    expected, weight = layer(x), layer.weight_net[0].weight
    layer.weight_net[0] = nn.Linear(C, 3, bias=False)
    layer.weight_net[0].weight = weight
    torch.testing.assert_close(layer(x), expected)
    layer.conv3.bias = nn.Parameter(torch.ones(C))
    assert not torch.allclose(layer(x), expected)


# Layers that call submodules accept every argument and work with every tracer.


@layers
def test_arguments_reach_a_called_layer(make):
    layer, (x, residual) = make(), maps(3, C, 9)
    lengths = torch.tensor([3, 9, 1])
    torch.testing.assert_close(some(layer)(x, residual, "relu", lengths), layer(x, residual, "relu", lengths))
    for bad in ((x.long(),), (x, residual[:1]), (x, None, "gelu"), (x[0, 0],), ("x",)):
        with pytest.raises((TypeError, ValueError), match=r"^(x|residual|activation): expected") as error:
            layer(*bad)
        with pytest.raises(error.type) as same:
            some(layer)(*bad)
        assert str(same.value) == str(error.value)


@layers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_of_a_called_layer(make, dtype):
    layer, x = make(), make_x((2, C, 3, 5), dtype)
    if dtype == torch.float64:
        layer = layer.double()
    assert some(layer)(x).dtype == dtype
    torch.testing.assert_close(some(layer)(x), layer(x))


@layers
def test_a_called_layer_is_compiled_traced_and_exported(make):
    layer, (x, residual) = make(), maps(2, C, 3, 5)
    model, expected = some(layer), layer(x, residual, "relu")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, residual, "relu"), expected)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, residual, "relu"), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x, residual), layer(x, residual))
    n = torch.export.Dim("n", min=2)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: n},))
    torch.testing.assert_close(program.module()(torch.cat([x, residual])), layer(torch.cat([x, residual])))


@layers
@pytest.mark.parametrize("how", ["forward", "hook"])
def test_changes_made_before_compile_are_compiled(make, how):
    layer, x = make(), make_x((2, C, 3, 5))
    if how == "forward":
        layer.sigmoid.forward = torch.zeros_like
    else:
        layer.sigmoid.register_forward_hook(lambda _m, _x, g: torch.zeros_like(g))
    assert not layer(x).any()
    assert not torch.compile(layer, fullgraph=True, backend="aot_eager")(x).any()


# The channels as the last dimension.


@layers
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, C), (2, 3, 5, C), (2, 2, 3, 4, C)], ids=str)
def test_channels_last_in_the_shape(make, called, shape):
    tokens, (x, residual) = make(channels_dim=-1), maps(*shape)
    images = make()
    images.load_state_dict(tokens.state_dict())
    if called:
        tokens = some(tokens)
    y = tokens(x, residual, "relu")
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, images(x.movedim(-1, 1), residual.movedim(-1, 1), "relu").movedim(1, -1))
    torch.testing.assert_close(torch.fx.symbolic_trace(tokens)(x), tokens(x))


def test_channels_dim_is_shown_and_checked():
    assert EfficientChannelAttention(C, channels_dim=-1).extra_repr() == "20, channels_dim=-1"
    with pytest.raises(ValueError, match="channels_dim: expected one of 1, -1, got 2"):
        BidirectionalECA(C, channels_dim=2)
    with pytest.raises(TypeError, match="x: expected a Tensor, got list"):
        EfficientChannelAttention(C, channels_dim=-1)([1])
    assert eca_cuda.EfficientChannelAttention(C)(channels_last(make_x((2, C, 3, 5)))).stride(1) == 1
