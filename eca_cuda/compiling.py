# SPDX-License-Identifier: MIT
"""What ``torch.compile`` and ``torch.export`` make of a call: the fused operator, or plain operators that they fuse."""

import threading
from types import TracebackType
from typing import Literal, Optional

import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from ._compat import is_exporting

Mode = Literal["auto", "fused", "inline"]

MODES = ("auto", "fused", "inline")


class _OfThread(threading.local):
    def __init__(self) -> None:  # runs in each thread; Dynamo overlooks changes of class attributes
        self.mode: Mode = "auto"


# Read while tracing, so that Dynamo guards on it: a change of mode recompiles. Not a ContextVar, which Dynamo can't
# trace before torch 2.14.
_chosen = _OfThread()


class compile_mode:
    """Choose what compiled and exported calls become; eager calls stay as they are.

    ``"fused"`` keeps one operator of this package in the graph: it saves two passes over memory, but nothing fuses
    across it. ``"inline"`` gives plain operators, with the convolution across channels as shifted sums, so that
    Inductor may fuse them with the operators around them; ``torch.export`` then makes programs that do not need this
    package. ``"auto"``, the default, is the mode that was faster in a residual block: inline for compiled inference
    on a CPU, fused for everything else (docs/pytorch.md). Calls exported with gradients are always inline.

    Like ``torch.set_grad_enabled``, a call sets the mode of this thread, and a context manager restores the previous
    mode at the end; other threads keep theirs, and new ones begin with ``"auto"``. The mode that counts is the one at
    the call of a compiled model, not at ``torch.compile``; a model called in two modes is compiled twice.

    Raises:
        ValueError: naming the argument, what was expected and what was given.
    """

    def __init__(self, mode: Mode) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
        self._mode, self._before = mode, _chosen.mode
        _chosen.mode = mode

    def __enter__(self) -> None:
        _chosen.mode = self._mode

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        _chosen.mode = self._before


def mode() -> Mode:
    """The mode of this thread."""
    return _chosen.mode


def inlines(x: Tensor, differentiated: bool) -> bool:
    """Whether this call becomes plain operators, if it is traced."""
    if is_exporting():
        # The operators have no gradients of their own, and a program holds no autograd.Function that would give them.
        return differentiated or _chosen.mode == "inline"
    if _chosen.mode == "auto":
        # Other subclasses keep the operator: DTensor has sharding rules for it.
        plain = type(x) in (Tensor, FunctionalTensor) and x.device.type == "cpu"
        return plain and not differentiated
    return _chosen.mode == "inline"


def shifted_conv(m: Tensor, weight: Tensor, bias: Optional[Tensor], padding_mode: str) -> Tensor:
    """``reference.channel_conv`` as a sum of shifted products: Inductor fuses these, but not a convolution."""
    c, half = m.shape[1], weight.shape[-1] // 2
    padded = F.pad(m.unsqueeze(1), (half, half), mode="circular")[:, 0] if padding_mode == "circular" else None

    def product(tap: int) -> Tensor:
        if padded is not None:
            return padded[:, tap : tap + c] * weight[0, 0, tap]
        # Padding is not multiplied, as in the kernels: 0 times an infinite weight would be NaN.
        left, right = min(max(half - tap, 0), c), min(max(tap - half, 0), c)
        return F.pad(m[:, right : c - left] * weight[0, 0, tap], (left, right))

    z = product(0)
    for tap in range(1, weight.shape[-1]):
        z = z + product(tap)
    return z if bias is None else z + bias
