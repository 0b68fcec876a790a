# SPDX-License-Identifier: MIT
"""``convert`` finds attention by what it computes, changes nothing but the forward, and ``revert`` undoes it."""

import copy
import io
import pickle
import random
import re
import warnings
from functools import partial

import originals
import pytest
import torch
from lookalikes import OF_RANK, OTHER, SAME, UNRELATED, NamesItsInput, SometimesSkipped, eca_layer
from torch import nn
from torch.nn.utils import parametrizations, prune

import eca_cuda
from eca_cuda import conversion_report, convert, revert
from eca_cuda.conversion.block_rewriting import attend
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x, used_budget


def timm_layer(name: str, **options: object) -> nn.Module:
    """A layer of timm for 64 channels; skips the test without timm."""
    return getattr(pytest.importorskip("timm.layers"), name)(64, **options)


KNOWN = SAME | {
    "timm": partial(timm_layer, "EcaModule"),
    "timm, hard sigmoid": partial(timm_layer, "EcaModule", gate_layer="hard_sigmoid"),
    "timm circular": partial(timm_layer, "CecaModule"),
    "timm circular, bias": partial(timm_layer, "CecaModule", act_layer=nn.ReLU),
    "original ECA": lambda: originals.EfficientChannelAttention(64),
    "original multi-kernel": lambda: originals.DynamicMultiKernelECA(64),
    "original bidirectional": lambda: originals.BidirectionalECA(64),
}
OTHERS = OTHER | {
    "timm, mlp": (partial(timm_layer, "EcaModule", use_mlp=True), "expected the layers of a variant of ECA"),
    "timm, another gate": (partial(timm_layer, "EcaModule", gate_layer="tanh"), "Tanh"),
}
every_known = pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)


def is_converted(module: nn.Module) -> bool:
    return isinstance(module, FusedAttention)


def results(layer: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    x = make_x((2, 64, 7, 9)).to(dtype).requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], make_x(x.shape, seed=2).to(dtype))
    return {"y": y.detach()} | dict(zip(["grad_x", *dict(layer.named_parameters())], grads, strict=True))


@every_known
def test_outputs_and_gradients_are_within_budget(make):
    layer = make()
    eager, exact = results(layer, torch.float32), results(copy.deepcopy(layer).double(), torch.float64)
    convert(layer)
    assert is_converted(layer)
    scale = max(float(g.abs().max()) for name, g in exact.items() if name not in ("y", "grad_x"))
    for name, ours in results(layer, torch.float32).items():
        of_parameter = name not in ("y", "grad_x")
        terms = 2 * 64 * 63 if of_parameter else 64 + 63
        used_budget(name, ours, eager[name], exact[name], terms, scale * of_parameter)


@every_known
def test_nothing_but_the_forward_changes(make):
    layer = make().eval()
    model = nn.Sequential(nn.Conv2d(3, 64, 1), layer, layer)
    calls: list[str] = []
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    keys, state = list(model.state_dict()), dict(model.named_parameters())
    modules, kind, attributes = dict(model.named_modules()), type(layer), dict(vars(layer))
    generator = torch.get_rng_state()
    assert convert(model) is model
    assert torch.equal(torch.get_rng_state(), generator)
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()) == modules and model[1] is model[2] is layer
    assert all(p is state[name] for name, p in model.named_parameters())
    assert isinstance(layer, kind) and not layer.training and not calls
    model(make_x((2, 3, 5, 5)))
    assert calls == ["before", "after"] * 2
    once = type(layer)
    assert type(convert(model)[1]) is once, "converting again must change nothing"
    assert revert(model) is model
    assert type(layer) is kind and vars(layer) == attributes


@pytest.mark.parametrize("make, reason", OTHERS.values(), ids=OTHERS)
def test_a_module_that_computes_something_else_is_left_alone_and_the_report_says_why(make, reason):
    model = nn.Sequential(make())
    kind = type(model[0])
    with pytest.warns(UserWarning, match="no attention in the model could be fused"):
        convert(model)
    assert type(model[0]) is kind
    (finding,) = conversion_report(model).attention
    assert (finding.path, finding.kind, finding.status) == ("0", kind.__name__, "left alone")
    assert reason in finding.detail


SHAPES = {3: (8, 16, 9), 4: (2, 16, 5, 6), 5: (2, 16, 3, 4, 5)}


@pytest.mark.parametrize("make, ranks", OF_RANK.values(), ids=OF_RANK)
def test_sequences_images_and_volumes_are_fused_where_the_module_takes_them(make, ranks, monkeypatch):
    layer, calls = make(), []
    original = eca_cuda.functional.eca
    monkeypatch.setattr(eca_cuda.functional, "eca", lambda *a, **k: calls.append(a[0].dim()) or original(*a, **k))
    inputs = [make_x(SHAPES[rank]) for rank in ranks]
    expected = [layer(x) for x in inputs]
    convert(layer)
    torch.testing.assert_close([layer(x) for x in inputs], expected)
    assert calls == list(ranks)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_an_input_of_an_untried_rank_runs_the_modules_own_forward(activation):
    """The official layer accepts an image without a batch, [C, H, W]; the fused function would read it as [N, C, L]."""
    layer, x, residual = eca_layer(8), make_x((8, 5, 6)), make_x((8, 5, 6), seed=2)
    expected = layer(x)
    convert(layer)
    assert torch.equal(layer(x), expected)
    y = attend(layer, x, residual, activation, in_place=False)
    assert torch.equal(y, (expected + residual).relu() if activation else expected + residual)


def test_an_input_given_by_name():
    x = make_x((2, 64, 3, 5))
    for layer, name in ((eca_layer(64), "x"), (NamesItsInput(64), "inputs")):
        expected = layer(x)
        convert(layer)
        torch.testing.assert_close(layer(**{name: x}), expected)


def test_a_trial_does_not_change_the_random_state():
    before = random.getstate()
    conversion_report(SometimesSkipped(64))
    assert random.getstate() == before


@pytest.mark.parametrize("make", UNRELATED)
def test_unrelated_modules_are_not_mentioned(make):
    assert conversion_report(nn.Sequential(make())).attention == ()


def test_attention_inside_containers_and_wrappers_is_found_once():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.eca = eca_layer(64)

        def forward(self, x):
            return self.eca(x)

    model = nn.ModuleDict({"a": nn.Sequential(eca_layer(64)), "b": Wrapper()})
    assert [f.path for f in conversion_report(model).attention] == ["a.0", "b.eca"]


def test_our_own_layers_count_as_fused_and_stay():
    model = nn.Sequential(eca_cuda.EfficientChannelAttention(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model)
    assert type(model[0]) is eca_cuda.EfficientChannelAttention
    assert [f.status for f in conversion_report(model).attention] == ["fused"]


def test_the_report_in_full_before_and_after():
    others = timm_layer("EcaModule", gate_layer="tanh"), timm_layer("CecaModule")
    model = nn.Sequential(*(timm_layer("EcaModule") for _ in range(4)), *others)
    text = re.sub(r"off by \S+", "off by 1.3e+00", str(conversion_report(convert(model))))
    assert text == (
        "attention: 6 found\n"
        "  fused: 4 x EcaModule, eca(padding_mode='zeros', gate='sigmoid'): 0, 1, ..., 3\n"
        "  left alone: 1 x EcaModule, it computes something else: off by 1.3e+00 from the nearest variant "
        "(Conv1d, Tanh): 4\n"
        "  fused: 1 x CecaModule, eca(padding_mode='circular', gate='sigmoid'): 5\n"
        "residual blocks: 0 found\n"
        "batch norms before attention: 0 found"
    )
    assert "could be fused: 4 x EcaModule" in str(conversion_report(revert(model)))


@pytest.mark.parametrize("function", [convert, revert, conversion_report])
def test_an_argument_that_is_not_a_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got dict"):
        function({})


@every_known
def test_copies_and_pickles_are_converted_too(make):
    layer, x = convert(make()), make_x((2, 64, 3, 5))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
        nn.Module._replicate_for_data_parallel(layer),
    ):
        assert type(other) is type(layer) and is_converted(other)
        assert torch.equal(other(x), layer(x))
        assert other is not layer
    assert type(revert(copy.deepcopy(layer))) is type(make())


@pytest.mark.parametrize(
    "reparametrise",
    [lambda m: prune.l1_unstructured(m, "weight", amount=1), parametrizations.weight_norm],
    ids=["prune", "weight_norm"],
)
def test_reparametrised_weights_keep_acting(reparametrise):
    layer, x = eca_layer(64), make_x((2, 64, 3, 5))
    reparametrise(layer.conv)
    expected = layer(x)
    torch.testing.assert_close(convert(layer)(x), expected)
    assert is_converted(layer)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_kept_and_a_cast_after_conversion_works(dtype):
    before, after = convert(eca_layer(64).to(dtype)), convert(eca_layer(64)).to(dtype)
    x = make_x((2, 64, 3, 5), dtype)
    assert before(x).dtype == after(x).dtype == dtype
    assert is_converted(before) and before.conv.weight.dtype == dtype


def test_a_model_on_the_meta_device_is_converted_before_it_has_values():
    with torch.device("meta"):
        layer = convert(eca_layer(64))
    assert is_converted(layer) and layer.conv.weight.is_meta
    layer.to_empty(device="cpu")
    nn.init.ones_(layer.conv.weight)
    assert layer(make_x((2, 64, 3, 5))).shape == (2, 64, 3, 5)
