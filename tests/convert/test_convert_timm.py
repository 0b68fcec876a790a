# SPDX-License-Identifier: MIT
"""All of timm's models with ECA, converted: outputs and gradients within budget, and checks from timm's own tests.

Each model is made once for all of its tests, which do not change it.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from eca_cuda import conversion_report, convert, revert
from eca_cuda.testing import used_budget

timm = pytest.importorskip("timm")
from timm.layers import EcaModule

# Image sizes of models with a fixed grid of positions; the others use 32 x 32.
SIZES = {"eca_botnext26ts_256": 128, "eca_halonext26ts": 256}
MODELS = [name for name in timm.list_models() if "eca" in name]
# Blocks that add the shortcut to the output of the attention; others have a gain or a convolution in between.
ADDING = {"eca_vovnet39b": 2} | {name: None for name in MODELS if name.startswith("ecaresne")}  # None: all blocks


def test_the_list_of_models_with_eca_is_complete():
    assert len(MODELS) == 23


def size_of(name: str) -> int:
    return SIZES.get(name, 32)


def make_model(name: str, **options: object) -> nn.Module:
    """A model with random weights: gains and biases that timm initialises to zero would hide the attention."""
    torch.manual_seed(0)
    sized = {"img_size": size_of(name)} if "botnext" in name else {}
    model = timm.create_model(name, **sized, **options)
    with torch.no_grad():
        for p in model.parameters():
            if not p.count_nonzero():
                p.uniform_(0.1, 0.5)
    return model


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """An unconverted model in eval mode, with ten classes."""
    return make_model(request.param, num_classes=10).eval()


@pytest.fixture
def name(model: nn.Module, request: pytest.FixtureRequest) -> str:
    return request.node.callspec.params["model"]


@pytest.fixture
def converted(model: nn.Module) -> Iterator[nn.Module]:
    """``model``, converted until the test ends."""
    yield convert(model, fuse_residual=True)
    revert(model)


def results(model: nn.Module, images: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The output, and the gradients of the images and of all parameters."""
    images = images.clone().requires_grad_()
    y = model(images)
    names = ["grad of the images", *(f"grad of {name}" for name, _ in model.named_parameters())]
    grads = torch.autograd.grad(y.square().sum(), [images, *model.parameters()])
    return zip(["y", *names], [y.detach(), *grads], strict=True)


def check_model(model: nn.Module, images: Tensor, **options: bool) -> None:
    """Convert ``model`` and compare it with eager, whose error is measured again without oneDNN if the budget fails."""
    exact = dict(results(model.double(), images.double()))
    model.float()  # float64 holds all float32 values exactly
    eager, other = dict(results(model, images)), None
    ours = dict(results(convert(model, **options), images))
    for name, result in ours.items():
        try:
            used_budget(name, result, eager[name], exact[name], terms=images[0].numel())
        except AssertionError:
            if other is None:
                with torch.backends.mkldnn.flags(enabled=False):
                    other = dict(results(revert(model), images))
                convert(model, **options)
            used_budget(name, result, other[name], exact[name], terms=images[0].numel())


def test_outputs_and_gradients_are_within_budget(model, name):
    size = size_of(name)
    attention = [path for path, m in model.named_modules() if isinstance(m, EcaModule)]
    check_model(model, torch.randn(1, 3, size, size), fuse_residual=True)
    report = conversion_report(model)
    revert(model)
    assert [f.path for f in report.attention if f.status == "fused"] == attention
    fused = ADDING.get(name, 0)
    assert [f.status for f in report.residual].count("fused") == (len(attention) if fused is None else fused)
    assert {f.detail.partition(" goes to ")[2] for f in report.residual if f.status != "fused"} <= {
        f"{what}, not to an addition" for what in ("mul", "conv3_1x1", "output")
    }


def test_a_training_step_reaches_every_parameter(converted, name):
    """In training mode, with the model's drop-path and dropout."""
    size = size_of(name)
    y = converted.train()(torch.randn(2, 3, size, size))
    grads = torch.autograd.grad(y.square().sum(), list(converted.parameters()))
    converted.eval()
    assert y.shape == (2, 10) and y.isfinite().all()
    assert all(grad.isfinite().all() and grad.count_nonzero() for grad in grads)


def test_features_and_heads_match_the_configuration(converted, name):
    """On a copy, as heads are replaced: unpooled and intermediate features, other classifiers, no pooling."""
    model, size = copy.deepcopy(converted), size_of(name)
    x, config = torch.randn(2, 3, size, size), model.default_cfg
    side = size * config["pool_size"][0] // config["input_size"][1]
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (2, model.num_features, side, side)
        assert torch.equal(model.forward_head(features), model(x))
        last, intermediates = model.forward_intermediates(x)
        assert torch.equal(last, features)
        assert [t.shape[1] for t in intermediates] == [info["num_chs"] for info in model.feature_info]
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
    names = dict(converted.named_parameters())
    assert {f"{config[key]}.weight" for key in ("classifier", "first_conv")} <= names.keys()


@pytest.mark.parametrize("name", MODELS)
def test_features_only_gives_the_same_features(name):
    """In float64, where rounding is far smaller than any other error."""
    model, size = make_model(name, features_only=True).eval().double(), size_of(name)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        features = convert(model, fuse_residual=True)(x)
    assert "fused" in {f.status for f in conversion_report(model).attention}
    assert [t.shape[1] for t in features] == model.feature_info.channels()
    assert [t.shape[2] for t in features] == [size // r for r in model.feature_info.reduction()]
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("options", [{}, {"fuse_residual": True}, {"fuse_residual": True, "fuse_norm": True}])
def test_training_updates_batch_norm_alike(options):
    """In training mode, with batch statistics; drop-path is off.

    Gradients are compared in float64: in float32 one of a million ReLUs may switch, in eager mode too.
    """
    before = make_model("ecaresnet26t", num_classes=10).train()
    images = torch.randn(8, 3, 64, 64)
    wide = images.double()
    truths = dict(results(copy.deepcopy(before).double(), wide))
    eagers = dict(results(copy.deepcopy(before), images))
    for name, result in results(convert(copy.deepcopy(before).double(), **options), wide):
        used_budget(name, result, eagers[name], truths[name], terms=images.numel())
    expected = copy.deepcopy(before).double()
    exact, eager, ours = expected, before, convert(copy.deepcopy(before), **options)
    for m in (exact, eager, ours):
        m(images.to(next(m.parameters()).dtype))
    for (name, truth), a, b in zip(exact.named_buffers(), eager.buffers(), ours.buffers(), strict=True):
        if truth.is_floating_point():
            used_budget(name, b, a, truth, terms=images.numel())
        else:
            assert torch.equal(a, b), name
