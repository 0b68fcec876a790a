# SPDX-License-Identifier: MIT
"""Tools that compute gradients with hooks on submodules: Opacus, BackPACK, captum, pytorch-grad-cam."""

import copy

import pytest
import torch
from tools import gradients, images, original, ours, three, ways
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def one_by_one(model: nn.Module, loss) -> dict[str, torch.Tensor]:
    """The gradients of each sample, ``[N, ...]``."""
    found = []
    for i, x in enumerate(images()):
        model.zero_grad()
        loss(model(x[None]), i).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    return {name: torch.stack([g[name] for g in found]) for name in found[0]}


@three
@ways
def test_opacus(name, way):
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    model = ours(original(name), way)
    expected = one_by_one(copy.deepcopy(model), lambda y, _: y.square().sum())
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum")
    wrapped(images()).square().sum().backward()
    found = {name: p.grad_sample for name, p in model.named_parameters()}
    torch.testing.assert_close(found, expected)
    wrapped.to_standard_module()
    assert gradients(model, images())


@three
@ways
def test_backpack(name, way):
    backpack = pytest.importorskip("backpack", reason="backpack-for-pytorch is not installed")
    labels, model = torch.tensor([0, 1, 1, 0]), ours(original(name), way)
    expected = one_by_one(copy.deepcopy(model), lambda y, i: nn.functional.cross_entropy(y, labels[i : i + 1]))
    model, loss = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack.backpack(backpack.extensions.BatchGrad()):
        loss(model(images()), labels).backward()
    torch.testing.assert_close({name: p.grad_batch for name, p in model.named_parameters()}, expected)


@three
@ways
@pytest.mark.parametrize("method", ["DeepLift", "IntegratedGradients", "GuidedBackprop", "Saliency"])
def test_captum(name, way, method):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    expected = original(name).eval()
    found, wanted = (
        getattr(attr, method)(model).attribute(images().requires_grad_(), target=0)
        for model in (ours(expected, way), expected)
    )
    torch.testing.assert_close(found, wanted)


@three
@ways
def test_grad_cam_of_the_attention(name, way):
    cam = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = [pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(0)] * 4
    expected, maps = original(name).eval(), []
    for model in (ours(expected, way), expected):
        with cam.GradCAM(model, [model[1]]) as method:
            maps.append(torch.from_numpy(method(images(), targets)))
    torch.testing.assert_close(*maps)
