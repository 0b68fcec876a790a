# SPDX-License-Identifier: MIT
"""Differences between supported versions of torch. Each is removed together with its version."""

from typing import Any, TypeVar

import torch

_Function = TypeVar("_Function")

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def constant_while_tracing(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result`` without importing torch._dynamo, which takes a second."""
    marked: Any = function
    marked._dynamo_marked_constant = True
    return function


@constant_while_tracing  # up to torch 2.11 Dynamo can't trace it
def has_autocast(device_type: str) -> bool:
    """Whether autocast exists for this type of device."""
    return torch.amp.is_autocast_available(device_type)


def is_autocast(device_type: str) -> bool:
    """Whether autocast is on for this type of device."""
    return has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def is_exporting() -> bool:
    """``torch.compiler.is_exporting``, which up to torch 2.11 is true wherever Dynamo traces, in torch.compile too."""
    return torch.compiler._is_exporting_flag if TORCH < (2, 12) else torch.compiler.is_exporting()
