# SPDX-License-Identifier: MIT
"""The modules replace the originals: same arguments, initial values, state-dict keys and results."""

import originals
import pytest
import torch
from torch import nn

import eca_cuda
from eca_cuda.testing import VARIANTS, make_x
from eca_cuda.variants.eca import adaptive_kernel_size

NAMES = [name for variant in VARIANTS if hasattr(originals, name := variant.module.__name__)]
CHANNELS = (4, 15, 64)

# c < 16 gives the bidirectional network an empty hidden layer, about which torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def ours(name: str, *args, **kwargs) -> nn.Module:
    return getattr(eca_cuda, name)(*args, **kwargs)


def original(name: str, *args, **kwargs) -> nn.Module:
    return getattr(originals, name)(*args, **kwargs)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    """Compares the order of parameters too, which optimizers rely on."""
    assert list(a.state_dict()) == list(b.state_dict())
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


# Loading and initialisation.


@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("name", NAMES)
def test_loads_the_state_of_the_original_and_computes_the_same(name, c):
    source, layer = original(name, c), ours(name, c)
    assert layer.load_state_dict(source.state_dict(), strict=True) == ([], [])
    assert_same_state(layer, source)
    x = make_x((2, c, 3, 5))
    torch.testing.assert_close(layer(x), source(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_original_loads_our_state(name):
    source, layer = original(name, 64), ours(name, 64)
    assert source.load_state_dict(layer.state_dict(), strict=True) == ([], [])


@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("name", NAMES)
def test_initial_values_are_those_of_the_original_for_one_seed(name, c):
    torch.manual_seed(3)
    source = original(name, c)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert_same_state(ours(name, c), source)
    assert torch.equal(torch.rand(1), after), "a model built after the layer must not change either"


@pytest.mark.parametrize("args", [(), (2,), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("c", [1, 2, 3, 4, 5, 16, 64, 100, 512, 2048])
def test_kernel_size_is_that_of_the_original(c, args):
    layers = (make("EfficientChannelAttention", c, *args) for make in (ours, original))
    assert len({layer.conv1.weight.shape for layer in layers}) == 1


def test_kernel_sizes_on_the_channels_of_resnet50():
    assert [adaptive_kernel_size(c) for c in (256, 512, 1024, 2048)] == [5, 5, 5, 7]
    assert adaptive_kernel_size(torch.tensor(256), 1.0, -2.0) == 5  # any integer type; abs removes the sign


@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_four_channels_or_fewer_have_one_tap(c):
    layer = ours("EfficientChannelAttention", c)
    assert layer.conv1.weight.shape == (1, 1, 1)
    assert layer(make_x((2, c, 3, 5))).shape == (2, c, 3, 5)


@pytest.mark.parametrize("prefix", ["", "layer1.0."])
@pytest.mark.parametrize("bias", [False, True])
def test_eca_loads_conv_weight_of_timm_and_the_official_code(prefix, bias):
    layer = ours("EfficientChannelAttention", 64, kernel_size=5, bias=bias)
    model = nn.ModuleDict({"layer1": nn.Sequential(layer)}) if prefix else layer
    state = {f"{prefix}conv.{name}": torch.full_like(p, 0.5) for name, p in layer.conv1.named_parameters()}
    before = dict(state)
    assert model.load_state_dict(state, strict=True) == ([], [])
    assert all(p.eq(0.5).all() for p in layer.parameters())
    assert state == before, "the caller's dict is the caller's"


def test_loading_still_refuses_what_does_not_belong():
    layer = ours("EfficientChannelAttention", 64)
    for key in ("conv2.weight", "weight"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            layer.load_state_dict({"conv.weight": torch.zeros(1, 1, 3), key: torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Missing key.*conv1\.weight"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1\.weight"):
        layer.load_state_dict({"conv.weight": torch.zeros(1, 1, 5)})


# Arguments.


@pytest.mark.parametrize(
    "name, args, kwargs",
    [
        ("EfficientChannelAttention", (512, 2, 3), {"c": 512, "b": 2, "gamma": 3}),
        ("DynamicMultiKernelECA", (64, (1, 4), 2), {"c": 64, "gamma_range": (1, 4), "base_b": 2}),
        ("BidirectionalECA", (64, 4), {"c": 64, "groups": 4}),
    ],
)
def test_arguments_of_the_originals_work_by_position_and_by_keyword(name, args, kwargs):
    source = original(name, *args)
    for layer in (ours(name, *args), ours(name, **kwargs)):
        assert {key: p.shape for key, p in layer.named_parameters()} == {
            key: p.shape for key, p in source.named_parameters()
        }
        for attribute in {"gamma_min", "gamma_max", "base_b", "groups"} & set(vars(source)):
            assert getattr(layer, attribute) == getattr(source, attribute)


OPTIONS = {
    "EfficientChannelAttention": [
        {"kernel_size": 9},
        {"padding_mode": "circular"},
        {"gate": "hard_sigmoid"},
        {"bias": True},
    ],
    "DynamicMultiKernelECA": [
        {"cross_channel": True},
        {"cross_channel": True, "padding_mode": "circular"},
        {"gate": "hard_sigmoid"},
    ],
    "BidirectionalECA": [{"final_sigmoid": False}, {"padding_mode": "circular"}, {"gate": "hard_sigmoid"}],
}


@pytest.mark.parametrize("name, options", [(name, o) for name, all_ in OPTIONS.items() for o in all_], ids=str)
def test_options_reach_the_function(name, options):
    layer, x = ours(name, 20, **options), make_x((2, 20, 3, 5))
    variant = next(v for v in VARIANTS if v.module is type(layer))
    call = {key: value for key, value in options.items() if key not in ("kernel_size", "bias")}
    torch.testing.assert_close(layer(x), variant.reference(x, *layer.parameters(), **call))


@pytest.mark.parametrize("name", NAMES)
def test_residual_and_activation_reach_the_function(name):
    layer, x, residual = ours(name, 20), make_x((2, 20, 3, 5)), make_x((2, 20, 3, 5), seed=2)
    torch.testing.assert_close(layer(x, residual, "relu"), torch.relu(layer(x) + residual))
    torch.testing.assert_close(layer(x, residual=residual), layer(x) + residual)
    torch.testing.assert_close(layer(x, activation="relu"), torch.relu(layer(x)))


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype_go_to_every_parameter(name):
    layer = ours(name, 64, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("meta", torch.float64)}


@pytest.mark.parametrize(
    "name, options, text",
    [
        ("EfficientChannelAttention", {"b": 2, "bias": True}, "64"),
        (
            "EfficientChannelAttention",
            {"padding_mode": "circular", "gate": "hard_sigmoid"},
            "64, padding_mode='circular', gate='hard_sigmoid'",
        ),
        ("DynamicMultiKernelECA", {}, "64"),
        ("DynamicMultiKernelECA", {"cross_channel": True}, "64, cross_channel=True"),
        ("BidirectionalECA", {}, "64"),
        (
            "BidirectionalECA",
            {"final_sigmoid": False, "gate": "hard_sigmoid"},
            "64, gate='hard_sigmoid', final_sigmoid=False",
        ),
    ],
)
def test_repr_shows_channels_and_options_that_the_submodules_do_not(name, options, text):
    assert ours(name, 64, **options).extra_repr() == text


def test_repr_in_full():
    assert repr(ours("EfficientChannelAttention", 64)) == (
        "EfficientChannelAttention(\n"
        "  64\n"
        "  (conv1): Conv1d(1, 1, kernel_size=(3,), stride=(1,), padding=(1,), bias=False)\n"
        "  (sigmoid): Sigmoid()\n"
        ")"
    )
