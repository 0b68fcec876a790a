# SPDX-License-Identifier: MIT
"""Efficient Channel Attention and two variants, as fused and differentiable kernels for the CPU and for CUDA."""

import importlib
from typing import TYPE_CHECKING, Any

from . import reference
from ._version import __version__
from .compiling import compile_mode
from .conversion import conversion_report, convert, revert
from .functional import batch_norm_eca, bidirectional_eca, eca, eca_, multi_kernel_eca
from .table import VARIANTS as _VARIANTS
from .tuning import load_from_environment, load_tuning
from .variants.bidirectional import BidirectionalECA
from .variants.eca import EfficientChannelAttention
from .variants.multi_kernel import DynamicMultiKernelECA

if TYPE_CHECKING:
    from . import inductor

__all__ = [
    "BidirectionalECA",
    "DynamicMultiKernelECA",
    "EfficientChannelAttention",
    "__version__",
    "batch_norm_eca",
    "bidirectional_eca",
    "compile_mode",
    "conversion_report",
    "convert",
    "eca",
    "eca_",
    "inductor",
    "load_tuning",
    "multi_kernel_eca",
    "reference",
    "revert",
]

load_from_environment()


def __getattr__(name: str) -> Any:
    """Import ``inductor``, which is slow, at its first use; find functions and layers that are not listed above."""
    if name == "inductor":
        return importlib.import_module(".inductor", __name__)
    for variant in _VARIANTS.values():
        for public in (variant.function, variant.module):
            if public.__name__ == name:
                return public
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
