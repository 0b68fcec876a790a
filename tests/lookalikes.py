# SPDX-License-Identifier: MIT
"""Channel attention as people write it: modules that ``convert`` must recognise, and modules that it must not."""

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class eca_layer(nn.Module):
    """The official layer (BangguWu/ECANet, models/eca_module.py)."""

    def __init__(self, channel, k_size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=k_size, padding=(k_size - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        y = self.sigmoid(y)
        return x * y.expand_as(x)


class ECABlock(nn.Module):
    """Other names for class and layers; pooling and sigmoid as functions."""

    def __init__(self, channels, gamma=2, b=1):
        super().__init__()
        t = int(abs((math.log2(channels) + b) / gamma))
        k = t if t % 2 else t + 1
        self.mix = nn.Conv1d(1, 1, k, padding=k // 2, bias=True)

    def forward(self, x):
        m = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return torch.sigmoid(self.mix(m[:, None])).view(*m.shape, 1, 1) * x


class CircularGate(nn.Module):
    """A name without "ECA", circular padding by torch, a hard sigmoid, and a fixed number of channels."""

    def __init__(self, channels, k=5):
        super().__init__()
        self.channels = channels
        self.squeeze = nn.Conv1d(1, 1, k, padding=k // 2, padding_mode="circular", bias=False)
        self.act = nn.Hardsigmoid()

    def forward(self, x):
        m = x.mean((2, 3)).view(-1, 1, self.channels)
        return x * self.act(self.squeeze(m)).view(-1, self.channels, 1, 1)


class CrossChannelMulti(nn.Module):
    """The evident intent of the multi-kernel layer: three kernels across channels, mixed by a softmax."""

    def __init__(self, c):
        super().__init__()
        self.k3, self.k5, self.k7 = (nn.Conv1d(1, 1, k, padding=k // 2, bias=False) for k in (3, 5, 7))
        self.router = nn.Linear(c, 3)

    def forward(self, x):
        m = x.mean((2, 3))
        p = self.router(m).softmax(1)
        z = sum(p[:, i, None] * conv(m[:, None])[:, 0] for i, conv in enumerate((self.k3, self.k5, self.k7)))
        return x * z.sigmoid()[:, :, None, None]


class NamesItsInput(eca_layer):
    def forward(self, inputs):
        return super().forward(inputs)


class OverSequences(nn.Module):
    """x [N, C, L]."""

    def __init__(self, k=3):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        return x * self.conv(self.pool(x).transpose(1, 2)).transpose(1, 2).sigmoid()


class OverVolumes(nn.Module):
    """x [N, C, D, H, W]."""

    def __init__(self, k=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3, 4))[:, None]).sigmoid()[:, 0, :, None, None, None]


class OverAnything(nn.Module):
    """x [N, C, *spatial]."""

    def __init__(self, k=3):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x):
        gate = self.conv(x.flatten(2).mean(2)[:, None])[:, 0].sigmoid()
        return x * gate.view(*gate.shape, *[1] * (x.dim() - 2))


# What makes them, and the dimensions of x that they take.
OF_RANK = {
    "images": (lambda: eca_layer(64), (4,)),
    "sequences": (OverSequences, (3,)),
    "volumes": (OverVolumes, (5,)),
    "anything": (OverAnything, (3, 4, 5)),
}

SAME = {
    "official": lambda: eca_layer(64, 5),
    "another argument's name": lambda: NamesItsInput(64),
    "own names, bias": lambda: ECABlock(64),
    "circular, hard sigmoid, fixed channels": lambda: CircularGate(64),
    "three kernels across channels": lambda: CrossChannelMulti(64),
}


# Modules with ECA's parameters or name that compute something else.


class WithShortcut(eca_layer):
    def forward(self, x):
        return x + super().forward(x)


class MaxPooled(eca_layer):
    def __init__(self, channel, k_size=3):
        super().__init__(channel, k_size)
        self.avg_pool = nn.AdaptiveMaxPool2d(1)


class Tanh(eca_layer):
    def __init__(self, channel, k_size=3):
        super().__init__(channel, k_size)
        self.sigmoid = nn.Tanh()


class DropsOutInTraining(eca_layer):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.1, self.training)


class GateOnly(eca_layer):
    def forward(self, x):
        return self.sigmoid(self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2)))


class Pair(eca_layer):
    def forward(self, x, y):
        return super().forward(x + y)


class AnyNumber(eca_layer):
    def forward(self, *inputs):
        return super().forward(*inputs)


class KeepsItsGate(eca_layer):
    def forward(self, x):
        self.last = y = super().forward(x)
        return y


class CountsInside(eca_layer):
    """A submodule with state that is not a buffer."""

    def __init__(self, channel):
        super().__init__(channel)
        self.sigmoid = Counting()


class Counting(nn.Sigmoid):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class SometimesSkipped(eca_layer):
    def forward(self, x):
        return x if self.training and random.random() < 1e-9 else super().forward(x)


class ECAByConv2d(nn.Module):
    def __init__(self, k=3):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, (k, 1), padding=(k // 2, 0), bias=False)

    def forward(self, x):
        return x * self.conv(x.mean((2, 3), keepdim=True).transpose(1, 2)).transpose(1, 2).sigmoid()


class EcaByParameter(nn.Module):
    def __init__(self, k=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, k))

    def forward(self, x):
        return x * F.conv1d(x.mean((2, 3))[:, None], self.weight, padding=1).sigmoid()[:, 0, :, None, None]


class EcaNS(nn.Module):
    """Separate weights per channel (the official eca_ns.py, shortened)."""

    def __init__(self, channel=64, k_size=3):
        super().__init__()
        self.conv = nn.Conv1d(channel, channel, k_size, groups=channel, bias=False)
        self.half = k_size // 2

    def forward(self, x):
        m = F.pad(x.mean((2, 3))[:, None], (self.half, self.half)).unfold(2, 2 * self.half + 1, 1)[:, 0]
        return x * self.conv(m).sigmoid()[..., None]


class ScaledECA(eca_layer):
    def __init__(self, channel):
        super().__init__(channel)
        self.gain = nn.Parameter(torch.ones(()))


class Opaque:
    """A callable without a signature, on any Python version."""

    __signature__ = 0

    def __call__(self, *arguments):
        raise AssertionError("nobody knows how to call this")


class OddlyMade(eca_layer):
    forward = Opaque()


class OnlyHolds(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, bias=False)


def dilated() -> nn.Module:
    layer = eca_layer(64)
    layer.conv = nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)
    return layer


def replaced_forward() -> nn.Module:
    layer = eca_layer(64)
    layer.forward = lambda x: x
    return layer


def hooked_inside() -> nn.Module:
    layer = eca_layer(64)
    layer.sigmoid.register_forward_hook(lambda *_: None)
    return layer


# name -> (maker, part of the reason for leaving it alone)
OTHER = {
    "adds the input": (lambda: WithShortcut(64), "something else"),
    "maximum": (lambda: MaxPooled(64), "AdaptiveMaxPool2d"),
    "another gate": (lambda: Tanh(64), "Tanh"),
    "dropout in training": (lambda: DropsOutInTraining(64), "uses F.dropout"),
    "returns the gate": (lambda: GateOnly(64), "shape of its input"),
    "two inputs": (lambda: Pair(64), "takes (x, y), expected one argument"),
    "any number of inputs": (lambda: AnyNumber(64), "takes (*inputs), expected one argument"),
    "arguments unknown": (lambda: OddlyMade(64), "could not be tried: "),
    "no forward": (OnlyHolds, "it has no forward"),
    "keeps its gate": (lambda: KeepsItsGate(64), "sets attributes"),
    "counts inside": (lambda: CountsInside(64), "sets attributes"),
    "sometimes skipped": (lambda: SometimesSkipped(64), "uses random, a module"),
    "by Conv2d": (ECAByConv2d, "expected the layers of a variant of ECA, got conv Conv2d(1, 1, kernel_size=(3, 1)"),
    "by a parameter": (EcaByParameter, "outside of convolutions and linear layers: weight"),
    "weights per channel": (lambda: EcaNS(), "Conv1d(64, 64"),
    "a gain of its own": (lambda: ScaledECA(64), "outside of convolutions and linear layers: gain"),
    "even kernel": (lambda: eca_layer(64, 4), "odd kernel size"),
    "dilated": (dilated, "dilation 1"),
    "replaced forward": (replaced_forward, "on the instance"),
    "hook inside": (hooked_inside, "sigmoid has hooks"),
}


class ECAPA_TDNN(nn.Module):
    """A network for speaker recognition, without ECA."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(80, 16, 5)

    def forward(self, x):
        return self.conv(x)


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)


class SqueezeExcite(nn.Module):
    def __init__(self, c=64):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, c // 4), nn.Linear(c // 4, c)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3))).relu()).sigmoid()[..., None, None]


class ECAStem(nn.Module):
    """A network with a convolution, with ECA in its name only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)


UNRELATED = (ECAPA_TDNN, Decay, SqueezeExcite, ECAStem)
