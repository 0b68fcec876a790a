# SPDX-License-Identifier: MIT
"""Whether a kernel may replace calls of a layer's submodules, and the composite around such calls otherwise."""

from collections.abc import Sequence
from typing import Any, Optional

import torch.fx
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from . import checks, reference

# torch.fx.symbolic_trace records calls of these instead of tracing into them, as it knows neither ranks nor dtypes.
torch.fx.wrap("channels_second")
torch.fx.wrap("pool")
torch.fx.wrap("rescale")


def recomputes_weights(hook: Any) -> bool:
    """Whether a forward pre-hook is one of torch's that compute a weight: pruning, old weight or spectral norm."""
    return isinstance(hook, (BasePruningMethod, WeightNorm, SpectralNorm))


def refreshed(layer: nn.Module) -> Any:
    """Run the hooks of ``layer`` that recompute its weights; return ``layer``."""
    if hooks := layer._forward_pre_hooks:
        for hook in hooks.values():
            if recomputes_weights(hook):
                hook(layer, ())
    return layer


def are_plain(modules: Sequence[Any], kinds: Sequence[type]) -> bool:
    """Whether a call of each module runs only ``kind.forward`` and torch's computation of weights.

    Linear layers must also have a bias.
    """
    if _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks:
        return False  # FlopCounterMode, for example, uses such hooks on every module
    if len(modules) != len(kinds):
        return False
    for m, kind in zip(modules, kinds, strict=False):  # strict=True is slower
        if type(m) is not kind and not (type(m).__base__ is kind and is_parametrized(m)):
            return False
        d = m.__dict__
        if d["_forward_hooks"] or d["_backward_hooks"] or d["_backward_pre_hooks"] or "forward" in d:
            return False
        if d["_forward_pre_hooks"] and not all(map(recomputes_weights, d["_forward_pre_hooks"].values())):
            return False
        if kind is nn.Linear and d["_parameters"].get("bias", m) is None:
            return False
    return True


def are_plain_convs(convs: Sequence[nn.Module], padding_mode: str, may_have_bias: bool = False) -> bool:
    """Whether each only applies its taps at every channel, with one weight for all channels or one per channel."""
    for conv in convs:
        d = conv.__dict__
        if not (
            d["in_channels"] == d["out_channels"] == d["groups"]
            and d["padding"] == (d["kernel_size"][0] // 2,)
            and d["stride"] == d["dilation"] == (1,)
            and d["padding_mode"] == padding_mode
        ):
            return False
        if not may_have_bias and d["_parameters"].get("bias") is not None:
            return False
    return True


def channels_second(x: Any) -> Any:
    """A view of ``x [N, *spatial, C]`` as ``[N, C, *spatial]``. Returns anything else unchanged, for the checks."""
    return x.movedim(-1, 1) if isinstance(x, Tensor) else x


def pool(x: Tensor, residual: Optional[Tensor], lengths: Optional[Tensor], parameter: Optional[Tensor]) -> Tensor:
    """The means ``[N, C]`` for the submodules, in the wider of the dtypes of ``x`` and ``parameter``."""
    checks.check_maps(x, residual)
    if lengths is not None:
        checks.check_lengths(lengths, x, False)
    return reference.pool(x, x if parameter is None else parameter, lengths)


def rescale(x: Tensor, g: Tensor, residual: Optional[Tensor], activation: Optional[str]) -> Tensor:
    """``activation(x * g + residual)``, in the dtype of ``x``."""
    checks.check_options("zeros", "sigmoid", activation)
    return reference.rescale(x, g, residual, activation)
