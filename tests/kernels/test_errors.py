# SPDX-License-Identifier: MIT
"""Every bad argument is refused with an exact message, in every kind of call."""

import math
from typing import Any

import pytest
import torch
from bad_calls import BAD, Bad, X
from cases import DTYPES
from torch import Tensor

import eca_cuda
from eca_cuda import checks, ops
from eca_cuda.options import GRAD_RESIDUAL, RELU
from eca_cuda.testing import BIDIRECTIONAL, ECA, VARIANTS


def refuses(bad: Bad) -> Any:
    """Expects the error with its full message."""
    return pytest.raises(bad.error, check=lambda error: str(error) == bad.message)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(bad):
    with refuses(bad):
        bad.call()
    with refuses(bad), torch.no_grad():
        bad.call()


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_where_a_gradient_is_wanted(bad):
    with refuses(bad):
        bad.call(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_arguments_are_refused_on_every_device(bad, device):
    with refuses(bad):
        bad.call(lambda t: t.to(device))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_meta_tensors_are_refused(bad):
    with refuses(bad):
        bad.call(lambda t: t.to("meta"))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("transform, size", [(torch.func.grad, ()), (torch.vmap, (2,))], ids=["grad", "vmap"])
def test_bad_arguments_are_refused_under_func_transforms(bad, transform, size):
    """Every float tensor is made to depend on the argument that is transformed."""
    positional, keyword = bad.arguments()

    def call(one: Tensor) -> Tensor:
        def dependent(value: Any) -> Any:
            return value * one if isinstance(value, Tensor) and value.dtype in DTYPES else value

        options = {name: dependent(value) for name, value in keyword.items()}
        return bad.variant.function(*map(dependent, positional), **options).sum()

    with refuses(bad):
        transform(call)(torch.ones(size))


# Tracing costs a second each, and the checks are the same code: one case per kind of error and per variant.
@pytest.mark.parametrize("name", ["x-rank2", "x-integer", "weight7-shape-cross", "residual-shape", "mix_bias-shape-2"])
def test_bad_arguments_are_refused_when_compiled(name):
    """torch wraps the error and keeps the message."""
    torch.compiler.reset()
    bad = BAD[name]
    positional, keyword = bad.arguments()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, check=lambda error: bad.message in str(error)):
        torch.compile(bad.variant.function, backend="eager", fullgraph=True)(*positional, **keyword)


@pytest.mark.parametrize("name", ["weight", "bias", "residual"])
def test_tensors_on_two_devices_are_refused(name):
    weight, bias = ECA.make_parameters(6, bias=True)
    arguments = {"x": X, "weight": weight, "bias": bias, "residual": X}
    arguments[name] = arguments[name].to("meta")
    message = f"{name}: expected a tensor on the device of x, cpu, got meta"
    with pytest.raises(ValueError, check=lambda error: str(error) == message):
        eca_cuda.eca(**arguments)


LAYOUTS = {
    "sparse": (Tensor.to_sparse, "layout torch.sparse_coo"),
    "mkldnn": (Tensor.to_mkldnn, "layout torch._mkldnn"),
    "nested": (lambda t: torch.nested.nested_tensor([t, t]), "a nested one"),
    "jagged": (lambda t: torch.nested.nested_tensor([t, t], layout=torch.jagged), "a nested one"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_other_layouts_are_refused_by_name(variant, layout):
    """Every argument, however the call is made: with a gradient or without, and under torch.func."""
    convert, got = LAYOUTS[layout]
    parameters = dict(zip([p.name for p in checks.PARAMETERS[variant.name]], variant.make_parameters(6), strict=False))
    given = {"x": X.flatten(2), **parameters, "residual": X.flatten(2), "lengths": torch.tensor([3, 4])}
    for name in given:
        if layout == "mkldnn" and name == "lengths":  # there are none of integers
            continue
        bad = {**given, name: convert(given[name])}
        if name != "lengths":
            del bad["lengths"]
        message = f"{name}: expected a dense (strided) tensor, got {got}"

        def call(scale: Tensor, bad: dict[str, Tensor] = bad) -> Tensor:
            return (variant.function(**bad) * scale).sum()

        for grad, transform in ((True, None), (False, None), (True, torch.func.grad)):
            with pytest.raises(ValueError, check=lambda e, m=message: str(e) == m), torch.set_grad_enabled(grad):
                (transform(call) if transform else call)(torch.ones((), requires_grad=transform is None))
            given["x"].requires_grad_(grad)
        if variant is ECA and name in ("x", "weight"):
            with pytest.raises(ValueError, check=lambda e, m=message: str(e) == m), torch.no_grad():
                eca_cuda.eca_(bad["x"], bad["weight"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("mode", ["fused", "inline"])
@pytest.mark.parametrize(
    "layout, name", [("jagged", "x"), ("sparse", "x"), ("sparse", "weight"), ("sparse", "residual")]
)
def test_other_layouts_are_refused_when_compiled(layout, name, mode):
    torch.compiler.reset()
    given = {"x": X, "weight": torch.ones(1, 1, 3), "residual": X}
    convert, got = LAYOUTS[layout]
    message = f"{name}: expected a dense (strided) tensor, got {got}"
    errors = (ValueError, torch._dynamo.exc.TorchDynamoException)
    with pytest.raises(errors, check=lambda error: message in str(error)), eca_cuda.compile_mode(mode):
        torch.compile(eca_cuda.eca, backend="eager")(**{**given, name: convert(given[name])})


def wrong(t: Tensor) -> dict[str, Tensor]:
    """Wrong replacements for a tensor."""
    other = torch.float64 if t.dtype == torch.float32 else torch.float32
    return {"shape": t[..., :0], "rank": t.unsqueeze(0), "dtype": t.to(other), "meta": t.to("meta")}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_real_and_fake_backward_refuse_the_same(variant, relu):
    """Only autograd calls them; still they must not return uninitialised memory."""
    operators = ops.OPERATORS[variant.name]
    parameters = variant.make_parameters(6, **({"hidden": 2} if variant is BIDIRECTIONAL else {}))
    parameters += [None] * (len(checks.PARAMETERS[variant.name]) - len(parameters))
    flags = RELU * relu
    _, mean, signs = operators.forward(X, *parameters, None, flags)
    good = [X, X, mean, signs if relu else None, *parameters, flags]
    bad = {f"flags {flag}": [*good[:-1], flags ^ flag] for flag in (RELU, GRAD_RESIDUAL * (not relu)) if flag}
    bad["signs"] = [*good[:3], None if relu else signs, *good[4:]]
    bad["transposed mean"] = [*good[:2], mean.T.contiguous().T, *good[3:]]
    for i, t in enumerate(good):
        if isinstance(t, Tensor):
            bad |= {f"{i} {what}": [*good[:i], value, *good[i + 1 :]] for what, value in wrong(t).items()}

    def fake(arguments: list[Any]) -> list[Any]:
        return [t.to("meta") if isinstance(t, Tensor) else t for t in arguments]

    operators.backward(*good)
    operators.backward(*fake(good))
    for what, arguments in bad.items():
        with pytest.raises((TypeError, ValueError), match=r"expected|invalid argument"):
            operators.backward(*arguments)
            pytest.fail(f"the operator accepts {what}")
        if "meta" not in what:
            with pytest.raises((TypeError, ValueError), match="expected"):
                operators.backward(*fake(arguments))
                pytest.fail(f"its fake accepts {what}")


ODD = "kernel_size: expected an odd number of at least 1, got "
ONE_CHANNEL = "c: expected at least 1 channel, got "


@pytest.mark.parametrize(
    "name, args, kwargs, message",
    [
        ("EfficientChannelAttention", (0,), {}, ONE_CHANNEL + "0"),
        ("EfficientChannelAttention", (-3,), {}, ONE_CHANNEL + "-3"),
        ("EfficientChannelAttention", (0,), {"kernel_size": 3}, ONE_CHANNEL + "0"),
        ("DynamicMultiKernelECA", (0,), {}, ONE_CHANNEL + "0"),
        ("BidirectionalECA", (0,), {}, ONE_CHANNEL + "0"),
        ("EfficientChannelAttention", (1.5,), {}, "c: expected an integer, got 1.5"),
        ("EfficientChannelAttention", (True,), {}, "c: expected an integer, got True"),
        ("DynamicMultiKernelECA", ("64",), {}, "c: expected an integer, got '64'"),
        ("BidirectionalECA", (None,), {}, "c: expected an integer, got None"),
        ("EfficientChannelAttention", (8,), {"gamma": 0}, "gamma: expected a number other than 0, got 0"),
        ("EfficientChannelAttention", (8,), {"gamma": "2"}, "gamma: expected a number, got '2'"),
        ("EfficientChannelAttention", (8,), {"gamma": math.nan}, "gamma: expected a finite number, got nan"),
        ("EfficientChannelAttention", (8,), {"b": math.inf}, "b: expected a finite number, got inf"),
        ("EfficientChannelAttention", (8,), {"b": False}, "b: expected a number, got False"),
        (
            "EfficientChannelAttention",
            (8,),
            {"b": 2**30},
            "b, gamma: expected a kernel size below 2^28, got b=1073741824 and gamma=2",
        ),
        ("EfficientChannelAttention", (8,), {"kernel_size": 3.0}, "kernel_size: expected an integer, got 3.0"),
        ("EfficientChannelAttention", (8,), {"kernel_size": True}, "kernel_size: expected an integer, got True"),
        ("EfficientChannelAttention", (8,), {"bias": "no"}, "bias: expected True or False, got 'no'"),
        ("DynamicMultiKernelECA", (8,), {"cross_channel": None}, "cross_channel: expected True or False, got None"),
        ("DynamicMultiKernelECA", (8,), {"gamma_range": 2}, "gamma_range: expected two numbers, got 2"),
        ("BidirectionalECA", (8,), {"final_sigmoid": "yes"}, "final_sigmoid: expected True or False, got 'yes'"),
        (
            "BidirectionalECA",
            (8,),
            {"dtype": torch.int32},
            "dtype: expected float32, float64, float16, bfloat16 or None, got torch.int32",
        ),
        ("EfficientChannelAttention", (8,), {"kernel_size": 4}, ODD + "4"),
        ("EfficientChannelAttention", (8,), {"kernel_size": 0}, ODD + "0"),
        ("EfficientChannelAttention", (8,), {"kernel_size": -1}, ODD + "-1"),
        (
            "EfficientChannelAttention",
            (8,),
            {"padding_mode": "same"},
            "padding_mode: expected one of 'zeros', 'circular', got 'same'",
        ),
        ("BidirectionalECA", (8,), {"gate": None}, "gate: expected one of 'sigmoid', 'hard_sigmoid', got None"),
        (
            "DynamicMultiKernelECA",
            (8,),
            {"padding_mode": "circular"},
            "padding_mode: 'circular' needs cross_channel=True, got cross_channel=False",
        ),
    ],
    ids=str,
)
def test_bad_constructor_arguments_are_refused(name, args, kwargs, message):
    with pytest.raises((TypeError, ValueError), check=lambda error: str(error) == message):
        getattr(eca_cuda, name)(*args, **kwargs)


@pytest.mark.parametrize("name", ["EfficientChannelAttention", "DynamicMultiKernelECA", "BidirectionalECA"])
def test_a_layer_refuses_another_number_of_channels(name):
    """ECA's weights fit any number of channels, as in the original."""
    layer = getattr(eca_cuda, name)(16)
    if name == "EfficientChannelAttention":
        assert layer(X).shape == X.shape
    else:
        with pytest.raises(ValueError, match="expected shape"):
            layer(X)
