# SPDX-License-Identifier: MIT
"""More channel attention from public code: other spellings of ECA, and modules that are only similar."""

import torch
import torch.nn.functional as F
from public_lookalikes import ECA, OTHER, C, Case, OwnHardSigmoid, over_image, written
from torch import nn


def gate_of(self, x):
    return over_image(self.gate(x.mean((2, 3))))


def eca(self, x):
    return x * gate_of(self, x)


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(1, 1, 3, padding=1), nn.Sigmoid()])

    def forward(self, x):
        y = x.mean((2, 3)).unsqueeze(1)
        for layer in self.layers:
            y = layer(y)
        return x * y.transpose(1, 2).unsqueeze(-1)


class Configured(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.settings = {"tau": 1.0}

    def forward(self, x):
        return x * over_image((self.logits(x.mean((2, 3))) / self.settings["tau"]).sigmoid())


class WarmedUp(ECA):
    """Warms up over training steps, which a trainer sets."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 200

    def forward(self, x):
        share = min(self.step / 100, 1.0)
        return x * (1 - share + share * gate_of(self, x))


class WithShortcutFlag(ECA):
    def __init__(self, shortcut: bool = False) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x):
        y = eca(self, x)
        return x + y if self.shortcut else y


class OfAnyRank(ECA):
    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[spatial_dims - 1](1)
        self.spatial_dims = spatial_dims

    def forward(self, x):
        return x * self.gate(self.pool(x).flatten(1)).view(x.size(0), x.size(1), *[1] * self.spatial_dims)


class PowerMean(ECA):
    def __init__(self, p: int) -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        return x * over_image(self.gate(x.pow(self.p).mean((2, 3)).pow(1 / self.p)))


class Mixed(ECA):
    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.alpha * eca(self, x) + (1 - self.alpha) * x


class Segments(ECA):
    """x [N * n, C, H, W]; the n frames of a clip share a gate."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x):
        m = x.unflatten(0, (-1, self.n)).mean((1, 3, 4))
        return x * over_image(self.gate(m).repeat_interleave(self.n, 0))


def of_one_rank(self, x):
    if x.ndim != 3:
        raise ValueError(f"expects [N, C, T], got {tuple(x.shape)}")
    return x * self.conv(x.mean(2, keepdim=True).transpose(1, 2)).sigmoid().transpose(1, 2)


def of_features_or_maps(self, x):
    m = x if x.dim() == 2 else x.mean((2, 3))
    return x * self.gate(m).reshape(x.size(0), x.size(1), *[1] * (x.dim() - 2))


def padded_around(self, x):
    m = F.pad(x.mean((2, 3)).unsqueeze(1), (1, 1), mode="circular")
    return x * over_image(F.conv1d(m, self.conv.weight).squeeze(1).sigmoid())


def in_float32(self, x):
    y, w = x.float(), self.conv.weight.float()
    return (y * over_image(F.conv1d(y.mean((2, 3))[:, None], w, padding=1)[:, 0].sigmoid())).to(x.dtype)


def squeezed(self, x):
    return x * self.conv(self.pool(x).squeeze().unsqueeze(-2)).sigmoid().squeeze().view(x.size(0), -1, 1, 1)


def turned(self, x):
    y = x.permute(0, 2, 3, 1)
    return (y * self.gate(y.mean((1, 2)))[:, None, None]).permute(0, 3, 1, 2)


def per_group(self, x):
    y = x.reshape(x.size(0) * 4, x.size(1) // 4, x.size(2), x.size(3))
    return eca(self, y).view_as(x)


def per_frame(self, x):
    b, c, t, h, w = x.shape
    y = x.transpose(1, 2).reshape(b * t, c, h, w)
    return eca(self, y).view(b, t, c, h, w).transpose(1, 2)


def beside_its_class_token(self, x):
    cls, rest = x[:, :1], x[:, 1:]
    return torch.cat([cls, rest * self.conv(rest.mean(1, keepdim=True)).sigmoid()], 1)


def with_its_gate(self, x):
    g = gate_of(self, x)
    return x * g, g


def summed(self, x):
    return (x.transpose(1, 2) @ self.gate(x.mean(2)).unsqueeze(-1)).squeeze(-1) / x.size(1)


SPELLINGS = {
    # Panoramas and hyperspectral cubes, where the last band is next to the first.
    "circular by hand": Case(written(padded_around), None),
    # Ports from frameworks that pad in a separate layer.
    "padding as a layer": Case(
        written(eca, conv=lambda: nn.Sequential(nn.ConstantPad1d(1, 0.0), nn.Conv1d(1, 1, 3, bias=False))), None
    ),
    # Mobile nets. In float64, torch's gradient of hardsigmoid uses 1/6 rounded to float32; the fused one does not.
    "hard sigmoid in place": Case(
        written(lambda self, x: x * over_image(F.hardsigmoid(self.logits(x.mean((2, 3))), inplace=True))),
        None,
        exact=written(lambda self, x: x * over_image(OwnHardSigmoid()(self.logits(x.mean((2, 3)))))),
    ),
    # Human activity from wearables: with an error message for images.
    "one rank": Case(written(of_one_rank), None, 3),
    # Classifiers that attend to maps and to pooled features.
    "features or maps": Case(written(of_features_or_maps), None),
    # Medical segmentation, where one class serves slices and volumes.
    "any rank": Case(lambda: OfAnyRank(3), None, 5),
    # Volumes, with an optional shortcut.
    "shortcut off": Case(WithShortcutFlag, None),
    # Half-precision transformers: only the average in float32.
    "averaged in float32": Case(
        written(lambda self, x: x * over_image(self.gate(self.pool(x.float()).to(x.dtype).flatten(1)))),
        None,
        exact=ECA,
    ),
    # The same, with everything in float32.
    "float32 throughout": Case(written(in_float32), None, exact=ECA),
    # Face anti-spoofing.
    "squeeze of all": Case(written(squeezed), None),
    # Hybrids of convolutions and MLPs, which permute maps around their layers.
    "turned and back": Case(written(turned), None),
    # Beginners' collections: the gate expanded by hand.
    "repeated gate": Case(written(lambda self, x: x * gate_of(self, x).repeat(1, 1, x.shape[2], x.shape[3])), None),
    # Models assembled from a configuration.
    "looped over": Case(Looped, None),
    # The same, with the options kept in a dict.
    "temperature in a dict": Case(Configured, None),
    # Fine-tuning of a pretrained net that had no attention.
    "warmed up": Case(WarmedUp, None),
    # Graph and skeleton nets, [N, C, T].
    "product by einsum": Case(written(lambda self, x: torch.einsum("ncl,nc->ncl", x, self.gate(x.mean(-1)))), None, 3),
    # Image retrieval with generalised-mean pooling, with a power of 1.
    "power mean of one": Case(lambda: PowerMean(1), None),
    # The same with the usual power of 3: negative means have no third root.
    "power mean of three": Case(lambda: PowerMean(3), OTHER),
    # Detectors with attention by average and maximum.
    "both as two channels": Case(
        written(
            lambda self, x: x * over_image(self.conv(torch.stack([x.mean((2, 3)), x.amax((2, 3))], 1))[:, 0].sigmoid()),
            conv=lambda: nn.Conv1d(2, 1, 3, padding=1, bias=False),
        ),
        "expected the layers of a variant of ECA, got conv Conv1d(2, 1",
    ),
    # Residual attention, written to save a temporary.
    "residual by addcmul": Case(written(lambda self, x: torch.addcmul(x, x, gate_of(self, x))), "uses torch.addcmul"),
    # Ports to chips without a sigmoid: 1 + tanh is zero where sigmoid is nearly zero.
    "sigmoid by tanh": Case(
        written(lambda self, x: x * over_image(0.5 * (1 + (self.logits(x.mean((2, 3))) / 2).tanh()))), OTHER
    ),
    # Remote sensing: logits normalised without parameters; the statistics are buffers.
    "normalised without affine": Case(
        written(
            lambda self, x: x * over_image(self.bn(self.logits(x.mean((2, 3)))[:, None])[:, 0].sigmoid()),
            bn=lambda: nn.BatchNorm1d(1, affine=False),
        ),
        "uses its buffer num_batches_tracked",
    ),
    # Global-context nets: means normalised over channels.
    "layer norm": Case(
        written(
            lambda self, x: x * over_image(self.gate(self.norm(x.mean((2, 3))))),
            norm=lambda: nn.LayerNorm(C, elementwise_affine=False),
        ),
        "torch's layer_norm",
    ),
    # Style transfer. torch compares sizes in training, to refuse a single position.
    "instance norm": Case(
        written(lambda self, x: x * gate_of(self, self.norm(x)), norm=lambda: nn.InstanceNorm2d(C)), "compares sizes"
    ),
    # Auxiliary attention that costs nothing at inference.
    "in training only": Case(written(lambda self, x: eca(self, x) if self.training else x), OTHER),
    # Nets with random or regularised gates.
    "a pair": Case(written(with_its_gate), "not a tensor of the shape of its input"),
    # Grouped and shuffled nets.
    "per group": Case(written(per_group), OTHER),
    # Image restoration, with reflection padding.
    "reflected": Case(
        written(eca, conv=lambda: nn.Conv1d(1, 1, 3, padding=1, padding_mode="reflect", bias=False)), OTHER
    ),
    # Video super-resolution, [N, C, T, H, W].
    "per frame": Case(written(per_frame), OTHER, 5),
    # Action recognition.
    "segments": Case(lambda: Segments(3), "uses Tensor.repeat_interleave"),
    # Fine-tuning with a learned mixing weight.
    "mixed with x": Case(Mixed, "a forward that does more"),
    # Vision transformers.
    "beside a class token": Case(written(beside_its_class_token), "slices a tensor", 3, -1),
    # Multiple-instance learning and EEG: channels are summed by their gates.
    "weighted sum": Case(written(summed), "not a tensor of the shape of its input", 3),
    # Collections of attention modules, with .contiguous() before a view: the output is never channels_last.
    "contiguous first": Case(written(lambda self, x: x.contiguous() * gate_of(self, x)), "its output has strides"),
}
