# SPDX-License-Identifier: MIT
"""Which measurements a run consists of: the standard plan, the quick one, or what the user names."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from .cases import RESNET50_BATCHES, TINY, Case, mobilenetv2, resnet50
from .providers import PROVIDERS

VARIANTS = ("eca", "multi_kernel_eca", "bidirectional_eca")
PHASES = ("forward", "training")
DTYPES = ("float32", "float64", "bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")

# function differs from fused in tiny cases only, and blocks are more than the layer.
_LAYERS = tuple(name for name in PROVIDERS if name != "function" and not name.startswith("block-"))
# torch.compile takes seconds per case, so that only the headline affords it.
_WITHOUT_COMPILE = ("eager", "fused", "clone")
# Where there is nothing to compute, a module's own call counts too.
_OVERHEAD = ("eager", "fused", "function")


@dataclass(frozen=True)
class Job:
    """One measurement: several providers, interleaved, on one case.

    ``phase`` is ``"forward"`` (under ``torch.no_grad``) or ``"training"`` (forward and backward).
    """

    case: Case
    variant: str
    phase: str
    dtype: str
    layout: str
    providers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.case.name} {self.variant} {self.phase} {self.dtype} {self.layout}"


def product(
    cases: Iterable[Case],
    *,
    variants: Iterable[str] = VARIANTS[:1],
    phases: Iterable[str] = PHASES,
    dtypes: Iterable[str] = DTYPES[:1],
    layouts: Iterable[str] = LAYOUTS[:1],
    providers: Iterable[str] = _LAYERS,
) -> list[Job]:
    """Every combination of what is given; by default ECA, both phases, float32, contiguous, all providers."""
    names = tuple(providers)
    return [Job(*choice, names) for choice in itertools.product(cases, variants, phases, dtypes, layouts)]


def standard() -> list[Job]:
    """The headline (ECA in ResNet-50 at three batch sizes) and a smaller look at everything else; under 4 minutes."""
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
    """A sanity check of under 40 seconds: ResNet-50 at batch 1 and 8 and the overhead, without torch.compile."""
    return [*product([*resnet50(1), *resnet50(8)], providers=_WITHOUT_COMPILE), *product([TINY], providers=_OVERHEAD)]
