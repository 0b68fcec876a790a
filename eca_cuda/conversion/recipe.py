# SPDX-License-Identifier: MIT
"""What a module was found to compute, and how to call one of our functions for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..submodules import refreshed
from .basis import Basis


@dataclass(frozen=True)
class Recipe:
    """What a module computes: ``functional.<variant>(x, *parameters of the holders, **options)``."""

    variant: str
    holders: tuple[str, ...]  # paths of the submodules that hold the parameters, in the order of the arguments
    options: Mapping[str, Any]
    ranks: tuple[int, ...] = ()  # the dimensions of x that this was found to hold for
    channels: Optional[int] = None  # the only number of channels that it was found to hold for
    takes_one_channel: bool = True  # squeeze() may take the dimension away
    argument: str = "x"  # what the forward calls x
    others: tuple[str, ...] = ()  # the names of what it takes besides, in order
    unread: frozenset[str] = frozenset()  # those that its code never reads
    none_by_default: frozenset[str] = frozenset()
    under_autocast: tuple[torch.dtype, ...] = ()  # dtypes of x that y has then; bfloat16 stands for autocast's own
    basis: Basis = field(default_factory=Basis)

    @property
    def takes_norm(self) -> bool:
        """Whether ``batch_norm_eca`` computes it, with a batch norm before it."""
        return self.variant == "eca" and self.options.keys() <= {"padding_mode", "gate"}

    def ignores(self, others: tuple[Any, ...], by_name: Mapping[str, Any], x_is_named: bool) -> bool:
        """Whether these arguments after x are as in the trial: not given, their default, or never read."""
        if len(others) > len(self.others):
            return False
        named = {**dict(zip(self.others, others, strict=False)), **by_name}
        return all(
            name in self.unread
            or (x_is_named and name == self.argument)
            or (value is None and name in self.none_by_default)
            for name, value in named.items()
        )

    def parameters(self, module: nn.Module, refresh: bool = True) -> list[Tensor]:
        """The arguments after ``x``, at first computed by torch's hooks where there are such (pruning, old norms)."""
        found = []
        for path in self.holders:
            layer: Any = module._modules.get(path) or module.get_submodule(path)
            if refresh and layer._forward_pre_hooks:
                refreshed(layer)
            plain = layer._parameters  # asked first, as layer.weight takes half a microsecond
            weight, bias = plain.get("weight"), plain.get("bias")
            found.append(layer.weight if weight is None else weight)
            if bias is not None or layer.bias is not None:
                found.append(layer.bias if bias is None else bias)
        return found
