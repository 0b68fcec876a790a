# SPDX-License-Identifier: MIT
"""The operations as functions of tensors: ``y = activation(x * gate(mean(x)) + residual)``.

In all of them ``x`` is ``[N, C, *spatial]`` with one to three spatial dimensions, in float32, float64, float16 or
bfloat16, contiguous or channels_last without a copy (other strides through one copy). With ``channels_dim=-1`` it is
``[N, *spatial, C]``, like the tokens of transformers, also without a copy. Parameters have the dtype of ``x``, or
float32 while ``x`` is half. ``y`` has the shape, dtype and memory format of ``x``.

Sums run in float32 (float64 for float64) in an order that depends on shape and layout only: the same input gives the
same bits for any number of threads. Saved for backward: ``x``, the parameters, the means ``[N, C]`` and, with an
activation, a bit for each element of ``y``. Differentiable to any order, in forward mode and under ``torch.func``.
"""

import torch.fx

from .norm import batch_norm_eca
from .options import Activation, Gate, PaddingMode
from .variants.bidirectional import bidirectional_eca
from .variants.eca import eca, eca_
from .variants.multi_kernel import multi_kernel_eca

__all__ = [
    "Activation",
    "Gate",
    "PaddingMode",
    "batch_norm_eca",
    "bidirectional_eca",
    "eca",
    "eca_",
    "multi_kernel_eca",
]

# torch.fx.symbolic_trace, and feature extractors built on it, record these calls without tracing into them.
for _name in ("batch_norm_eca", "bidirectional_eca", "eca", "multi_kernel_eca"):
    torch.fx.wrap(_name)
