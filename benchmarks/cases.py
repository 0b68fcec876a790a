# SPDX-License-Identifier: MIT
"""What is measured: feature maps of named layers, networks, providers, and the jobs of a run."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

VARIANTS = ("eca", "multi_kernel_eca", "bidirectional_eca")
BLOCK = "block"  # given as a job's variant: the tail of a residual block (block.py)
PHASES = ("forward", "training")
ALL_PHASES = (*PHASES, "backward", "residual_forward", "residual_training", "residual_backward")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")

PROVIDERS: dict[str, str] = {
    "eager": "the layer as its authors publish it, run by PyTorch operator by operator",
    "compile": "torch.compile of the authors' layer, static shapes",
    "compile-timm": "torch.compile of the layer as timm writes it",
    "autotune": "torch.compile of the authors' layer with mode max-autotune-no-cudagraphs",
    "fused": "the module of eca_cuda",
    "function": "the function of eca_cuda, called without a module",
    "residual": "block only: batch norm, then the module of eca_cuda with residual and ReLU",
    "plain": "block only: batch norm, residual and ReLU without attention",
    "clone": "x.clone(), a copy of the same size into a fresh tensor: the baseline for bandwidth",
}


NETWORKS = {
    "plain": "ResNet-50",
    "se": "with SE",
    "eager": "with ECA",
    "converted": "with ECA, `convert(model)`",
    "residual": "with ECA, `convert(model, fuse_residual=True)`",
    "norm": "with ECA, `convert(model, fuse_residual=True, fuse_norm=True)`",
}


@dataclass(frozen=True)
class Case:
    """A feature map ``[N, C, H, W]``; ``count`` is the number of blocks of the model with this shape."""

    name: str
    n: int
    c: int
    h: int
    w: int
    count: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.n, self.c, self.h, self.w)


@dataclass(frozen=True)
class Job:
    """One measurement: several providers, interleaved, on one case.

    ``phase`` is one of ``ALL_PHASES``: ``forward`` runs under ``torch.no_grad``, ``training`` is forward and backward;
    ``residual_`` phases measure ``relu(layer(x) + residual)``. ``variant`` may also be ``BLOCK``, "eca plans"
    (sweep.py) or "eca kernels" (profile.py).
    """

    case: Case
    variant: str
    phase: str
    dtype: str
    layout: str
    providers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.case.name} {self.variant} {self.phase} {self.dtype} {self.layout}"

    @property
    def differentiates(self) -> bool:
        return not self.phase.endswith("forward")

    @property
    def has_residual(self) -> bool:
        return self.phase.startswith("residual_")


# (channels, side, count) of the output of bn3 in each stage, where ECA-ResNet-50 has its attention; 16 blocks.
_RESNET50 = {"layer1": (256, 56, 3), "layer2": (512, 28, 4), "layer3": (1024, 14, 6), "layer4": (2048, 7, 3)}

# The output of the depthwise convolution in each of 17 blocks, where MobileNetV3 has its attention. Blocks with equal
# shapes are counted under the first of them.
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
    named = ((f"{name}.{stage}.n{batch}", size) for stage, size in stages.items())
    return tuple(Case(called, batch, c, side, side, count) for called, (c, side, count) in named)


def resnet50(batch: int) -> tuple[Case, ...]:
    """The four distinct inputs of ECA in ResNet-50 at 224x224."""
    return _model("resnet50", _RESNET50, batch)


def mobilenetv2(batch: int) -> tuple[Case, ...]:
    """The ten distinct depthwise outputs of MobileNetV2 at 224x224."""
    return _model("mobilenetv2", _MOBILENETV2, batch)


RESNET50_BATCHES = (1, 8, 32)
TINY = Case("tiny.overhead", 1, 8, 4, 4)
DRY = Case("resnet50.layer4.n2", 2, 16, 7, 8)  # for a dry run

SUITES: dict[str, tuple[Case, ...]] = {
    "resnet50": tuple(case for batch in RESNET50_BATCHES for case in resnet50(batch)),
    "resnet50.n256": resnet50(256),
    "mobilenetv2": mobilenetv2(1),
    "tiny": (TINY,),
}


def all_cases() -> dict[str, Case]:
    """Every case of every suite, once, by name."""
    return {case.name: case for suite in SUITES.values() for case in suite}


_LAYERS = ("eager", "compile", "fused", "clone")
_WITHOUT_COMPILE = ("eager", "fused", "clone")  # torch.compile takes seconds per case: only the headline affords it
_OVERHEAD = ("eager", "fused", "function")  # on a tiny tensor the call of a module costs a visible amount
_COMPILED = ("eager", "compile", "compile-timm", "fused", "clone")


def product(
    cases: Iterable[Case],
    *,
    variants: Iterable[str] = VARIANTS[:1],
    phases: Iterable[str] = PHASES,
    dtypes: Iterable[str] = DTYPES[:1],
    layouts: Iterable[str] = LAYOUTS[:1],
    providers: Iterable[str] = _LAYERS,
) -> list[Job]:
    """Every combination of the arguments; by default ECA, both phases, float32, contiguous."""
    names = tuple(providers)
    return [Job(*choice, names) for choice in itertools.product(cases, variants, phases, dtypes, layouts)]


def standard() -> list[Job]:
    """For a CPU: ECA in ResNet-50 at three batch sizes, and a few cases of everything else; under 4 minutes."""
    headline = [case for batch in RESNET50_BATCHES for case in resnet50(batch)]
    batch8 = resnet50(8)
    return [
        *product(headline),
        *product(batch8, layouts=["channels_last"], providers=_WITHOUT_COMPILE),
        *product(batch8, dtypes=["bfloat16"], providers=_WITHOUT_COMPILE),
        *product(batch8, variants=VARIANTS[1:], providers=_WITHOUT_COMPILE),
        *product(mobilenetv2(1), providers=_WITHOUT_COMPILE),
        *product([TINY], variants=VARIANTS, providers=_OVERHEAD),
    ]


def quick() -> list[Job]:
    """For a CPU, under 40 seconds: ResNet-50 at batch 1 and 8 and the overhead, without torch.compile."""
    return [*product([*resnet50(1), *resnet50(8)], providers=_WITHOUT_COMPILE), *product([TINY], providers=_OVERHEAD)]


def for_gpu(dry: bool = False) -> list[Job]:
    """For a GPU, a minute or two: nothing that compiles, the most important jobs first."""
    if dry:
        return product([DRY], phases=ALL_PHASES, dtypes=["float16"], providers=_WITHOUT_COMPILE)
    half, both, large = ["float16"], ("forward", "backward"), resnet50(256)
    residual = ("residual_forward", "residual_backward")
    return [
        *product(large, phases=both, dtypes=half, layouts=LAYOUTS, providers=_WITHOUT_COMPILE),
        *product([*resnet50(32), *resnet50(1)], phases=both, dtypes=half, providers=_WITHOUT_COMPILE),
        *product(large, phases=residual, dtypes=half, layouts=LAYOUTS[1:], providers=_WITHOUT_COMPILE),
        *product(large, phases=both, dtypes=DTYPES[:1], providers=_WITHOUT_COMPILE),
        *product(large, variants=VARIANTS[1:], phases=both, dtypes=half, providers=_WITHOUT_COMPILE),
        *product(mobilenetv2(256), phases=both, dtypes=half, providers=_WITHOUT_COMPILE),
    ]


def compiled(dry: bool = False) -> list[Job]:
    """For a GPU, compared with torch.compile; with max-autotune, which takes tens of seconds a case, once per layer."""
    if dry:
        return product([DRY], dtypes=["float16"], providers=("compile", "fused", "clone"))
    half, large, residual = ["float16"], resnet50(256), ("residual_forward", "residual_training")
    return [
        *product(large, phases=PHASES[1:], dtypes=half, layouts=LAYOUTS, providers=_COMPILED),
        *product(large, phases=PHASES[:1], dtypes=half, layouts=LAYOUTS[1:], providers=_COMPILED),
        *product(large, phases=residual, dtypes=half, layouts=LAYOUTS[1:], providers=("compile", "fused", "clone")),
        *product(large, phases=PHASES[:1], dtypes=half, providers=(*_COMPILED, "autotune")),
        *product([*resnet50(32), *resnet50(1)], dtypes=half, providers=_COMPILED),
    ]
