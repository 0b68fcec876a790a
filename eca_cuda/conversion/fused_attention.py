# SPDX-License-Identifier: MIT
"""The forward of a converted attention module."""

from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, fx, nn

from .. import functional
from .._compat import is_autocast
from ..functional import Activation
from . import fused_norm
from .recipe import Recipe
from .swap import Swapped
from .trial import AUTOCAST_DTYPE
from .watch import Conversion


class FusedAttention(Swapped):
    """A converted attention module.

    Its own forward runs if x has a rank or number of channels that was not tried (not checked for a proxy of torch.fx),
    if it is given further arguments that its code reads, if autocast would make the dtype of y differ from that of x,
    and while its basis does not hold.
    """

    if TYPE_CHECKING:  # TorchScript reads annotations
        _eca_cuda: Conversion[Recipe]

    def forward(
        self,
        x: Any = ...,
        /,
        *others: Any,
        eca_cuda_residual: Optional[Tensor] = None,
        eca_cuda_activation: Activation = None,
        eca_cuda_norm: Optional[nn.Module] = None,
        **by_name: Any,
    ) -> Tensor:
        recipe = self._eca_cuda.found
        given = by_name.get(recipe.argument) if x is ... else x
        epilogue: dict[str, Any] = {"residual": eca_cuda_residual, "activation": eca_cuda_activation}
        y: Tensor
        if eca_cuda_norm is not None:  # a norm keeps rank, channels and dtype of x
            if recipe.ranks and recipe.takes_norm and _is_as_tried(self, x, others, by_name, False):
                options = epilogue | dict(recipe.options)
                normed = fused_norm.batch_norm_eca(eca_cuda_norm, x, recipe.parameters(self), options)
                if normed is not None:
                    return normed
            epilogue = {f"eca_cuda_{name}": value for name, value in epilogue.items()}
            return FusedAttention.forward(self, eca_cuda_norm(x), **epilogue)
        if (recipe.ranks and isinstance(given, fx.Proxy)) or _is_as_tried(self, given, others, by_name, x is ...):
            function = getattr(functional, recipe.variant)
            try:
                y = function(given, *recipe.parameters(self), **epilogue, **recipe.options)
                return y
            except (
                TypeError,
                ValueError,
            ):  # the fused function refuses a dtype or device that its own forward may take
                if torch.compiler.is_compiling():
                    raise
        y = super().forward(**by_name) if x is ... else super().forward(x, *others, **by_name)
        y = y if eca_cuda_residual is None else y + eca_cuda_residual
        return torch.relu(y) if eca_cuda_activation else y


def _is_as_tried(
    module: FusedAttention, x: Any, others: tuple[Any, ...], by_name: dict[str, Any], x_is_named: bool
) -> bool:
    recipe = module._eca_cuda.found
    if not isinstance(x, Tensor) or x.dim() not in recipe.ranks:
        return False
    if recipe.channels is not None or not recipe.takes_one_channel:
        channels = x.shape[recipe.options.get("channels_dim", 1)]
        if recipe.channels not in (None, channels) or (channels == 1 and not recipe.takes_one_channel):
            return False
    if (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()) and not _keeps_dtype(recipe, x):
        return False
    if (others or by_name) and not recipe.ignores(others, by_name, x_is_named):
        return False
    return module._eca_cuda.holds_for(module)


def _keeps_dtype(recipe: Recipe, x: Tensor) -> bool:
    """Whether its own forward returns the dtype of x too, given the state of autocast."""
    if not is_autocast(x.device.type):
        return True
    if x.dtype == torch.float32:
        return torch.float32 in recipe.under_autocast
    return x.dtype == torch.get_autocast_dtype(x.device.type) and AUTOCAST_DTYPE in recipe.under_autocast
