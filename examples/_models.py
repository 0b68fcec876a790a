# SPDX-License-Identifier: MIT
"""Attention that can be switched to the reference, and the two networks that the examples use."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchvision.models import resnet, resnet50

from eca_cuda.testing import ECA, Variant

Model = TypeVar("Model", bound=nn.Module)


class Attention(nn.Module):
    """An attention layer that runs the fused kernels or the reference, with the same parameters."""

    def __init__(self, variant: Variant, channels: int) -> None:
        super().__init__()
        self.layer = variant.module(channels)
        self.reference = variant.reference
        self.is_reference = False

    def forward(self, x: Tensor) -> Tensor:
        # The modules hold their parameters in the order in which the functions take them.
        y: Tensor = self.reference(x, *self.layer.parameters()) if self.is_reference else self.layer(x)
        return y


def reference_copy(model: Model) -> Model:
    """A copy of ``model`` in which all attention runs the reference."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.is_reference = True
    return model


def insert_attention(model: Model, variant: Variant) -> Model:
    """Put attention after the last normalisation of every torchvision residual block, in place; return the model."""
    last_norms = {resnet.BasicBlock: "bn2", resnet.Bottleneck: "bn3"}
    for block in list(model.modules()):
        if type(block) in last_norms:
            name = last_norms[type(block)]
            norm = getattr(block, name)
            setattr(block, name, nn.Sequential(norm, Attention(variant, norm.num_features)))
    return model


def eca_resnet50(seed: int) -> resnet.ResNet:
    """ECA-ResNet-50 with random weights, in eval mode."""
    torch.manual_seed(seed)
    return insert_attention(resnet50(), ECA).eval()


def digits_resnet(variant: Variant, seed: int) -> nn.Module:
    """Three residual blocks with 16, 32 and 64 channels for images of 8 x 8, random weights.

    The activation is smooth on purpose. With ReLU, an input that rounds to the other side of zero changes a gradient by
    far more than rounding: the losses of float32 and float64 training then differ by 0.03 to 0.08 (seeds 0 to 2, 8
    epochs of digits.py, reference only), with SiLU by 1e-6.
    """
    torch.manual_seed(seed)
    model = nn.Sequential(
        resnet.conv3x3(1, 16),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        _smooth_block(16, 16, stride=1),
        _smooth_block(16, 32, stride=2),
        _smooth_block(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return insert_attention(model, variant)


def _smooth_block(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    is_identity = channels_in == channels_out and stride == 1
    shortcut = nn.Sequential(resnet.conv1x1(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))
    block = resnet.BasicBlock(channels_in, channels_out, stride, downsample=None if is_identity else shortcut)
    block.relu = nn.SiLU()
    return block
