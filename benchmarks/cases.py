# SPDX-License-Identifier: MIT
"""What is measured: feature maps with the names of the layers they come from, grouped into suites."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A feature map ``[n, c, h, w]``; ``count`` is how many blocks of the model see this very shape."""

    name: str
    n: int
    c: int
    h: int
    w: int
    count: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, self.h, self.w)

    @property
    def elements(self) -> int:
        return self.n * self.c * self.h * self.w


# (channels, side, count): the output of bn3 in each stage, where ECA-ResNet-50 has its attention; 16 blocks.
_RESNET50 = {"layer1": (256, 56, 3), "layer2": (512, 28, 4), "layer3": (1024, 14, 6), "layer4": (2048, 7, 3)}

# (channels, side, count): the output of the depthwise convolution in each of 17 blocks, where MobileNetV3 has its
# attention too. A block whose shape an earlier block has is counted there.
_MOBILENETV2 = {
    "block1": (32, 112, 1),
    "block2": (96, 56, 1),
    "block3": (144, 56, 1),
    "block4": (144, 28, 1),
    "block5": (192, 28, 2),
    "block7": (192, 14, 1),
    "block8": (384, 14, 4),
    "block12": (576, 14, 2),
    "block14": (576, 7, 1),
    "block15": (960, 7, 3),
}


def _model(name: str, stages: dict[str, tuple[int, int, int]], batch: int) -> tuple[Case, ...]:
    return tuple(
        Case(f"{name}.{stage}.n{batch}", batch, c, side, side, count) for stage, (c, side, count) in stages.items()
    )


def resnet50(batch: int) -> tuple[Case, ...]:
    """The four distinct inputs of ECA in ResNet-50 at 224x224."""
    return _model("resnet50", _RESNET50, batch)


def mobilenetv2(batch: int) -> tuple[Case, ...]:
    """The ten distinct depthwise outputs of MobileNetV2 at 224x224."""
    return _model("mobilenetv2", _MOBILENETV2, batch)


RESNET50_BATCHES = (1, 8, 32)
TINY = Case("tiny.overhead", 1, 8, 4, 4)

SUITES: dict[str, tuple[Case, ...]] = {
    "resnet50": tuple(case for batch in RESNET50_BATCHES for case in resnet50(batch)),
    "mobilenetv2": mobilenetv2(1),
    "batch1": resnet50(1) + mobilenetv2(1),
    "channels": tuple(Case(f"channels.c{c}", 8, c, 14, 14) for c in (16, 64, 256, 512, 1024, 2048, 4096)),
    "spatial": tuple(Case(f"spatial.s{side * side}", 8, 256, side, side) for side in (1, 3, 7, 14, 28, 56, 112)),
    "tiny": (TINY,),
}


def all_cases() -> dict[str, Case]:
    """Every case of every suite, once, by name."""
    return {case.name: case for suite in SUITES.values() for case in suite}
