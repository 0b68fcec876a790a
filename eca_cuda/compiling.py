# SPDX-License-Identifier: MIT
"""What ``torch.compile`` and ``torch.export`` make of a call: the fused operator, or plain operators that they fuse."""

from types import TracebackType
from typing import Literal, Optional

import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor

from ._compat import is_exporting

Mode = Literal["auto", "fused", "inline"]

MODES = ("auto", "fused", "inline")

# Read while tracing, so that Dynamo guards on it: a change of mode recompiles.
_mode: Mode = "auto"


class compile_mode:
    """Choose what compiled and exported calls become; eager calls stay as they are.

    ``"fused"`` keeps one operator of this package in the graph: two passes over memory less, but a barrier that nothing
    fuses across. ``"inline"`` gives plain operators, with the convolution across channels as shifted sums, so that
    Inductor may fuse them with what stands before and after; ``torch.export`` then makes programs that need nothing of
    this package. ``"auto"``, the default, is what was measured to be faster in a residual block: inline for compiled
    inference on a CPU, fused for everything else (docs/pytorch.md). What is exported with gradients is always inline.

    Like ``torch.set_grad_enabled``, a call sets the mode, and as a context manager it is restored at the end. The mode
    counts where a compiled model is called, not where ``torch.compile`` is; a model called in both has two versions.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """

    def __init__(self, mode: Mode) -> None:
        global _mode
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(map(repr, MODES))}, got {mode!r}")
        self._before = _mode
        _mode = mode

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        global _mode
        _mode = self._before


def mode() -> Mode:
    """What was chosen."""
    return _mode


def inlines(x: Tensor, differentiated: bool) -> bool:
    """Whether this call becomes plain operators, if it is traced."""
    if is_exporting():
        # The operators have no gradients of their own, and a program holds no autograd.Function that would give them.
        return differentiated or _mode == "inline"
    if _mode == "auto":
        # Other subclasses keep the operator: DTensor has rules for it.
        plain = type(x) in (Tensor, FunctionalTensor) and x.device.type == "cpu"
        return plain and not differentiated
    return _mode == "inline"


def shifted_conv(m: Tensor, weight: Tensor, bias: Optional[Tensor], padding_mode: str) -> Tensor:
    """``reference.channel_conv`` as a sum of shifted products, which Inductor fuses; a convolution it calls."""
    c, k = m.shape[1], weight.shape[-1]
    padded = F.pad(m.unsqueeze(1), (k // 2, k // 2), mode="circular" if padding_mode == "circular" else "constant")[
        :, 0
    ]
    z = padded[:, :c] * weight[0, 0, 0]
    for tap in range(1, k):
        z = z + padded[:, tap : tap + c] * weight[0, 0, tap]
    return z if bias is None else z + bias
