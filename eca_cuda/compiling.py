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
    def __init__(self) -> None:  # runs in each thread; Dynamo overlooks changes of what the class has
        self.mode: Mode = "auto"


# Read while tracing, so that Dynamo guards on it: a change of mode recompiles. Not a ContextVar, which Dynamo can't
# trace before torch 2.14.
_chosen = _OfThread()


class compile_mode:
    """Choose what compiled and exported calls become; eager calls stay as they are.

    ``"fused"`` keeps one operator of this package in the graph: two passes over memory less, but a barrier that nothing
    fuses across. ``"inline"`` gives plain operators, with the convolution across channels as shifted sums, so that
    Inductor may fuse them with what stands before and after; ``torch.export`` then makes programs that need nothing of
    this package. ``"auto"``, the default, is what was measured to be faster in a residual block: inline for compiled
    inference on a CPU, fused for everything else (docs/pytorch.md). What is exported with gradients is always inline.

    Like ``torch.set_grad_enabled``, a call sets the mode of this thread, and as a context manager what was before is
    restored at the end; other threads keep theirs, and new ones begin with ``"auto"``. The mode counts where a compiled
    model is called, not where ``torch.compile`` is; a model called in both has two versions.

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
    """What was chosen."""
    return _chosen.mode


def inlines(x: Tensor, differentiated: bool) -> bool:
    """Whether this call becomes plain operators, if it is traced."""
    if is_exporting():
        # The operators have no gradients of their own, and a program holds no autograd.Function that would give them.
        return differentiated or _chosen.mode == "inline"
    if _chosen.mode == "auto":
        # Other subclasses keep the operator: DTensor has rules for it.
        plain = type(x) in (Tensor, FunctionalTensor) and x.device.type == "cpu"
        return plain and not differentiated
    return _chosen.mode == "inline"


def shifted_conv(m: Tensor, weight: Tensor, bias: Optional[Tensor], padding_mode: str) -> Tensor:
    """``reference.channel_conv`` as a sum of shifted products, which Inductor fuses; a convolution it calls."""
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
