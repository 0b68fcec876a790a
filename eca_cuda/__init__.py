# SPDX-License-Identifier: MIT
"""Efficient Channel Attention and two variants: fused kernels that read the feature map once and write it once."""

import importlib
from typing import TYPE_CHECKING, Any

from . import reference
from ._version import __version__
from .compiling import compile_mode
from .conversion import conversion_report, convert, revert
from .functional import batch_norm_eca, bidirectional_eca, eca, eca_, multi_kernel_eca
from .modules import BidirectionalECA, DynamicMultiKernelECA, EfficientChannelAttention
from .tuning import load_from_environment, load_tuning

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
    """Modules that are slow to import are imported at their first use."""
    if name == "inductor":
        return importlib.import_module(".inductor", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
