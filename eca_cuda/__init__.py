# SPDX-License-Identifier: MIT
"""Efficient Channel Attention and two variants: fused kernels that read the feature map once and write it once."""

from . import reference
from ._version import __version__
from .functional import bidirectional_eca, eca, multi_kernel_eca
from .modules import BidirectionalECA, DynamicMultiKernelECA, EfficientChannelAttention

__all__ = [
    "BidirectionalECA",
    "DynamicMultiKernelECA",
    "EfficientChannelAttention",
    "__version__",
    "bidirectional_eca",
    "eca",
    "multi_kernel_eca",
    "reference",
]
