# SPDX-License-Identifier: MIT
"""Channel attention as found in public code, rewritten here; comments say where each kind occurs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 32  # the channels of every case


class ECA(nn.Module):
    """The base of nearly all cases: a pooling and a convolution across channels."""

    def __init__(self, k: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=bias)

    def logits(self, m: Tensor) -> Tensor:
        """The logits for means [N, C]."""
        return self.conv(m.unsqueeze(1)).squeeze(1)

    def gate(self, m: Tensor) -> Tensor:
        return self.logits(m).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(x).squeeze(-1).permute(0, 2, 1)
        return x * self.conv(y).sigmoid().permute(0, 2, 1).unsqueeze(-1).expand_as(x)


def written(forward: Callable[..., Tensor], *arguments: Any, **modules: Callable[[], nn.Module]) -> Callable[[], ECA]:
    """Returns a function that makes a module with this forward and these submodules."""
    kind = type("ECA", (ECA,), {"forward": forward})

    def make() -> ECA:
        module = kind(*arguments)
        for name, build in modules.items():
            setattr(module, name, build())
        return module

    return make


def over_image(g: Tensor) -> Tensor:
    return g[:, :, None, None]


class OnTwoNumbers(ECA):
    def __init__(self, c1: int, c2: Optional[int] = None, k_size: int = 3) -> None:
        super().__init__(k_size)
        self.c2 = c2 or c1


class PaddingSame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 5, padding="same", bias=False)

    def forward(self, x):
        return x * self.conv(x.mean(1, keepdim=True)).sigmoid()


class MaskedTokens(PaddingSame):
    def forward(self, x, mask=None):
        return super().forward(x if mask is None else x * mask)


class PoolObject:
    """Called like a module, but not one."""

    def __call__(self, x):
        return x.view(x.size(0), x.size(1), -1).mean(-1)


class PlainPool(ECA):
    def __init__(self) -> None:
        super().__init__()
        del self.pool
        self.pool = PoolObject()

    def forward(self, x):
        return x * over_image(self.gate(self.pool(x)))


class OwnHardSigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class LearnedScale(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.gamma * x * over_image(self.gate(x.mean((2, 3))))


class TemperatureBuffer(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, x):
        return x * over_image((self.logits(x.mean((2, 3))) / self.temperature).sigmoid())


class Temperature(ECA):
    temperature = 1.0

    def forward(self, x):
        return x * over_image((self.logits(x.mean((2, 3))) / self.temperature).sigmoid())


class GateInSequential(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(self.conv, nn.Sigmoid())

    def forward(self, x):
        return x * over_image(self.logits(x.mean((2, 3))))


class GateOfFixedChannels(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(self.pool, nn.Flatten(), nn.Unflatten(1, (1, C)), self.conv, nn.Sigmoid())

    def forward(self, x):
        return x * self.gate(x).transpose(1, 2).unsqueeze(-1)


class GateAlone(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.conv = written(lambda self, x: over_image(self.gate(x.mean((2, 3)))))()

    def forward(self, x):
        return x * self.conv(x)


def with_spatial_gate(self, x):
    x = x * over_image(self.gate(x.mean((2, 3))))
    return x * self.spatial(torch.stack([x.mean(1), x.amax(1)], 1)).sigmoid()


def in_place(self, x):
    x *= over_image(self.gate(x.mean((2, 3))))
    return x


def by_unpacked_sizes(self, x):
    b, c, _h, _w = x.size()
    return x * self.gate(self.pool(x).view(b, c)).view(b, c, 1, 1)


def in_halves(self, x):
    a, b = x.chunk(2, 1)
    return torch.cat([a * over_image(self.gate(a.mean((2, 3)))), b], 1)


def shuffled(self, x):
    m = x.mean((2, 3)).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
    return x * over_image(self.gate(m))


def safe_for_half(self, x):
    g = F.conv1d(x.float().mean((2, 3))[:, None], self.conv.weight.float(), padding=1)[:, 0].sigmoid()
    return x * over_image(g.to(x.dtype))


def of_signs(self, x):
    w = self.conv.weight
    w = w + (w.sign() - w).detach()
    return x * over_image(F.conv1d(x.mean((2, 3))[:, None], w, padding=1)[:, 0].sigmoid())


def through_a_square(self, x):
    n, length, c = x.shape
    y = x.transpose(1, 2).reshape(n, c, int(math.sqrt(length)), -1)
    return (y * over_image(self.gate(y.mean((2, 3))))).flatten(2).transpose(1, 2)


def by_einsum(self, x):
    m = torch.einsum("nchw->nc", x) / (x.size(-1) * x.size(-2))
    return torch.einsum("nchw,nc->nchw", x, self.gate(m))


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    reason: Optional[str]  # part of the reason in the report, or None if it is fused
    dims: int = 4  # of x
    channels_dim: int = 1
    exact: Optional[Callable[[], nn.Module]] = None  # the same without casts, if ``make`` casts


OTHER = "something else"
CASES = {
    # Dehazing U-Nets.
    "permuted": Case(ECA, None),
    # Face recognition and remote sensing.
    "unpacked sizes": Case(written(by_unpacked_sizes), None),
    # YOLO forks, for the parser of a model's yaml.
    "c1 and c2": Case(lambda: OnTwoNumbers(C, C), None),
    # Collections of attention modules: negative dimensions, a bias, a kernel of 7.
    "negative dimensions": Case(written(lambda self, x: x * over_image(self.gate(x.mean((-1, -2)))), 7, True), None),
    # The same, with the adaptive size overwritten by 1.
    "kernel of one": Case(written(lambda self, x: x * over_image(self.gate(x.mean((2, 3)))), 1, True), None),
    # Sign-language transformers: tokens [N, T, C], with an optional mask.
    "padding same": Case(PaddingSame, None, 3, -1),
    "masked tokens": Case(MaskedTokens, None, 3, -1),
    # Image-restoration transformers.
    "tokens pooled": Case(
        written(
            lambda self, x: x * self.conv(self.pool(x.transpose(-1, -2)).transpose(-1, -2)).sigmoid().expand_as(x),
            pool=lambda: nn.AdaptiveAvgPool1d(1),
        ),
        None,
        3,
        -1,
    ),
    # Swin-like nets: tokens to a square map and back.
    "through a square": Case(written(through_a_square), "sizes", 3, -1),
    # ConvNeXt-like nets: [N, H, W, C].
    "channels last": Case(written(lambda self, x: x * self.gate(x.mean((1, 2)))[:, None, None]), None, 4, -1),
    # Speaker verification, [N, C, T].
    "speech": Case(written(lambda self, x: x * self.gate(x.mean(dim=2)).unsqueeze(-1)), None, 3),
    # ECG and bearing faults.
    "signal": Case(
        written(
            lambda self, x: x * self.conv(self.pool(x).transpose(-1, -2)).transpose(-1, -2).sigmoid().expand_as(x),
            pool=lambda: nn.AdaptiveAvgPool1d(1),
        ),
        None,
        3,
    ),
    # Medical nets, [N, C, D, H, W].
    "volume": Case(
        written(
            lambda self, x: x * over_image(self.gate(self.pool(x).flatten(1))).unsqueeze(-1),
            pool=lambda: nn.AdaptiveAvgPool3d(1),
        ),
        None,
        5,
    ),
    "volume, average and maximum": Case(
        written(
            lambda self, x: (
                x * over_image(self.gate((self.pool(x) + F.adaptive_max_pool3d(x, 1)).flatten(1))).unsqueeze(-1)
            ),
            pool=lambda: nn.AdaptiveAvgPool3d(1),
        ),
        OTHER,
        5,
    ),
    # Super-resolution nets with a "max_pool" that averages.
    "two averages": Case(
        written(
            lambda self, x: (
                x * over_image((self.logits(self.pool(x).flatten(1)) + self.logits(x.mean((2, 3)))).sigmoid())
            )
        ),
        OTHER,
    ),
    # ECA-CBAM: its channel half, and both halves in one module.
    "average and maximum": Case(
        written(lambda self, x: x * over_image((self.logits(x.mean((2, 3))) + self.logits(x.amax((2, 3)))).sigmoid())),
        OTHER,
    ),
    "with a spatial gate": Case(
        written(with_spatial_gate, spatial=lambda: nn.Conv2d(2, 1, 7, padding=3, bias=False)),
        "a forward that does more",
    ),
    # TResNet-like nets.
    "a plain object pools": Case(PlainPool, "reads pool, a PoolObject"),
    # MobileNetV3-like nets from before torch had a hard sigmoid.
    "own hard sigmoid": Case(
        written(lambda self, x: x * over_image(self.act(self.logits(x.mean((2, 3))))), act=OwnHardSigmoid), None
    ),
    # Ports from Keras.
    "hard sigmoid of Keras": Case(
        written(lambda self, x: x * over_image((0.2 * self.logits(x.mean((2, 3))) + 0.5).clamp(0, 1))), OTHER
    ),
    # Hyperspectral nets.
    "two convolutions": Case(
        written(
            lambda self, x: x * over_image(self.gate(x.mean((2, 3)))),
            conv=lambda: nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.SiLU(), nn.Conv1d(1, 1, 3, padding=1)),
        ),
        "expected the layers of a variant of ECA",
    ),
    # Remote sensing.
    "normalised logits": Case(
        written(
            lambda self, x: x * over_image(self.bn(self.logits(x.mean((2, 3)))[:, None])[:, 0].sigmoid()),
            bn=lambda: nn.BatchNorm1d(1),
        ),
        "outside of convolutions and linear layers: bn.weight",
    ),
    # Fusion of modalities.
    "softmax gate": Case(
        written(lambda self, x: x * over_image(self.logits(x.mean((2, 3))).softmax(1) * x.shape[1])), OTHER
    ),
    # Residual attention.
    "gate plus one": Case(written(lambda self, x: x * (1 + over_image(self.gate(x.mean((2, 3)))))), OTHER),
    # Denoising.
    "learned scale": Case(LearnedScale, "a forward that does more"),
    # Dynamic convolutions: a schedule lowers it.
    "temperature as a buffer": Case(TemperatureBuffer, "buffer temperature"),
    "temperature as a number": Case(Temperature, None),
    # EEG.
    "dropped gate": Case(
        written(lambda self, x: x * over_image(F.dropout(self.gate(x.mean((2, 3))), 0.2, self.training))),
        "uses F.dropout",
    ),
    "dropout of 0": Case(
        written(lambda self, x: x * over_image(self.drop(self.gate(x.mean((2, 3))))), drop=lambda: nn.Dropout(0.0)),
        "torch's dropout",
    ),
    # Ports for compilers without adaptive pooling.
    "sum by number": Case(
        written(lambda self, x: x * over_image(self.gate(x.sum((2, 3)) / (x.shape[2] * x.shape[3])))),
        "something else in torch.float16",  # the sum overflows
    ),
    "pooled by size": Case(
        written(
            lambda self, x: torch.mul(
                x, self.gate(F.avg_pool2d(x, x.size()[2:]).flatten(1)).reshape(x.size(0), -1, 1, 1)
            )
        ),
        None,
    ),
    # Code that uses einops.
    "einsum": Case(written(by_einsum), "something else in torch.float16"),
    # Detection plugins.
    "gate in a Sequential": Case(GateInSequential, None),
    "gate of fixed channels": Case(GateOfFixedChannels, "could not be tried"),
    # Binarised nets.
    "gate alone": Case(GateAlone, None),
    "detached gate": Case(
        written(lambda self, x: x * over_image(self.gate(x.detach().mean((2, 3))))), "gradient of x differs"
    ),
    "binary weights": Case(written(of_signs), "uses Tensor.sign"),
    # Mixed precision. In float64 its gate has the accuracy of float32, and the fused one that of float64.
    "safe for half": Case(written(safe_for_half), None, exact=ECA),
    # Inference.
    "in place": Case(written(in_place), "writes into x"),
    # Contrast-aware super-resolution.
    "standard deviation": Case(
        written(lambda self, x: x * over_image(self.gate(x.std((2, 3), unbiased=False) + x.mean((2, 3))))), OTHER
    ),
    # Lightweight nets.
    "in halves": Case(written(in_halves), "uses Tensor.chunk"),
    "shuffled": Case(written(shuffled), OTHER),
}
