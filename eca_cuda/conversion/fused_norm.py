# SPDX-License-Identifier: MIT
"""One call for an ``nn.BatchNorm`` and the ECA after it, with the other effects of the norm's own forward."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from .. import functional

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norm_eca(
    norm: Any, x: Tensor, parameters: Sequence[Optional[Tensor]], options: Mapping[str, Any]
) -> Optional[Tensor]:
    """``eca(norm(x), *parameters, **options)``; None, with nothing changed, if one call cannot do it."""
    if norm._forward_pre_hooks:  # torch's, which recompute weights; with other hooks a block runs its own forward
        return None
    mean, var = norm.running_mean, norm.running_var
    is_tracking = norm.training and norm.track_running_stats
    if norm.training and not is_tracking:
        mean = var = None
    training = norm.training or (mean is None and var is None)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    weight, bias = (*parameters, None)[:2]
    count = norm.num_batches_tracked if is_tracking else None
    if count is not None:
        count.add_(1)  # before the call: a recomputation by checkpointing may stop in the middle of it
        if norm.momentum is None:  # a cumulative average
            momentum = 1.0 / float(count)
    try:
        norm._check_input_dim(x)
        return functional.batch_norm_eca(
            x,
            weight,  # type: ignore[arg-type]  # mypy: only the bias may be None
            norm.weight,
            norm.bias,
            mean,
            var,
            bias=bias,
            training=bool(training),
            momentum=momentum,
            eps=norm.eps,
            **options,
        )
    except (TypeError, ValueError):  # raised before any change of the statistics
        if torch.compiler.is_compiling():
            raise
        if count is not None:
            count.sub_(1)
        return None
