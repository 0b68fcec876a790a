# SPDX-License-Identifier: MIT
"""What a module computes, and how to call a function of eca_cuda for it."""

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
    ranks: tuple[int, ...] = ()  # the ranks of x for which it was confirmed
    channels: Optional[int] = None  # the only number of channels for which it was confirmed
    takes_one_channel: bool = True  # false if squeeze() removes that dimension, for example
    argument: str = "x"  # the name of x in the forward
    others: tuple[str, ...] = ()  # the names of its other arguments, in order
    unread: frozenset[str] = frozenset()  # the arguments that its code never reads
    none_by_default: frozenset[str] = frozenset()
    under_autocast: tuple[torch.dtype, ...] = ()  # dtypes of x that y keeps; bfloat16 stands for autocast's dtype
    basis: Basis = field(default_factory=Basis)

    @property
    def takes_norm(self) -> bool:
        """Whether ``batch_norm_eca`` computes it together with a batch norm before it."""
        return self.variant == "eca" and self.options.keys() <= {"padding_mode", "gate"}

    def ignores(self, others: tuple[Any, ...], by_name: Mapping[str, Any], x_is_named: bool) -> bool:
        """Whether these arguments besides x do not matter: never read, or equal to a default of None."""
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
        """The arguments after ``x``. ``refresh`` first runs torch's hooks that compute weights (pruning, old norms)."""
        found = []
        for path in self.holders:
            layer: Any = module._modules.get(path) or module.get_submodule(path)
            if refresh and layer._forward_pre_hooks:
                refreshed(layer)
            plain = layer._parameters  # looked up first, as layer.weight takes half a microsecond
            weight, bias = plain.get("weight"), plain.get("bias")
            found.append(layer.weight if weight is None else weight)
            if bias is not None or layer.bias is not None:
                found.append(layer.bias if bias is None else bias)
        return found
