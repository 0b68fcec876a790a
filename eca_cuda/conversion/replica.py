# SPDX-License-Identifier: MIT
"""A copy of a module for a trial: it shares nothing with the module and notes every read."""

from typing import Any

import torch
from torch import Tensor, nn

from .basis import HOOKS
from .notes import Notes
from .python_code import is_mutable
from .swap import STATE, own_class
from .trial import copied

HOLDERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # the layers that hold parameters


def paths_of(module: nn.Module) -> list[str]:
    """Paths of ``module`` and its submodules, without submodules of HOLDERS (parametrizations)."""
    found: list[str] = []
    holders: list[str] = []
    for path, m in module.named_modules():
        if not path.startswith(tuple(f"{holder}." for holder in holders)):
            found.append(path)
            if isinstance(m, HOLDERS):
                holders.append(path)
    return found


def replica(module: nn.Module, notes: Notes, paths: list[str], generator: torch.Generator) -> nn.Module:
    """A copy with random float64 parameters on the CPU and no hooks; the modules at ``paths`` note reads."""
    copies: dict[int, nn.Module] = {}

    def copy(original: nn.Module) -> nn.Module:
        if id(original) in copies:
            return copies[id(original)]
        made = copies[id(original)] = object.__new__(own_class(original))
        state = {name: copied(value) for name, value in vars(original).items() if name != STATE}
        object.__setattr__(made, "__dict__", state)
        for name, p in state["_parameters"].items():
            state["_parameters"][name] = p if p is None else nn.Parameter(_random(p, generator))
        for name, b in state["_buffers"].items():
            state["_buffers"][name] = b if b is None else _random(b, generator)
        for name, child in state["_modules"].items():
            state["_modules"][name] = child if child is None else copy(child)
        return made

    made = copy(module)
    vars(made).update({name: type(vars(made)[name])() for name in HOOKS})
    vars(made).pop("_compiled_call_impl", None)
    for path in paths:
        part = made.get_submodule(path)
        notes.take(part, path, _notes_holds=isinstance(part, HOLDERS), **lists_of(type(part)))
    return made


def lists_of(kind: type) -> dict[str, Any]:
    """Copies of the lists, dicts and sets in a user's class, which a trial must not change."""
    return {
        name: copied(value)
        for base in reversed(kind.__mro__)
        if not base.__module__.startswith("torch.")
        for name, value in vars(base).items()
        if is_mutable(value) and not name.startswith("__")
    }


def _random(t: Tensor, generator: torch.Generator) -> Tensor:
    if not t.is_floating_point():
        return torch.randint(2, 9, t.shape, generator=generator).to(t.dtype)
    return torch.randn(t.shape, dtype=torch.float64, generator=generator)
