# SPDX-License-Identifier: MIT
"""The options of a call as one immutable value, with the ``flags`` that the operators take."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Optional

from . import checks
from ._ext import _C

PaddingMode = Literal["zeros", "circular"]
Gate = Literal["sigmoid", "hard_sigmoid"]
Activation = Optional[Literal["relu"]]

# Bits of the operators' `flags`: csrc/options.h. Only backward operators take the last two.
CIRCULAR: int = _C.CIRCULAR
HARD_SIGMOID: int = _C.HARD_SIGMOID
RELU: int = _C.RELU
CROSS_CHANNEL: int = _C.CROSS_CHANNEL
SINGLE_SIGMOID: int = _C.SINGLE_SIGMOID
GRAD_RESIDUAL: int = _C.GRAD_RESIDUAL
BATCH_STATISTICS: int = _C.BATCH_STATISTICS


@dataclass(frozen=True)
class Options:
    """The options of every variant; those that a variant does not have keep their defaults."""

    padding_mode: PaddingMode = "zeros"
    gate: Gate = "sigmoid"
    activation: Activation = None
    cross_channel: bool = False
    final_sigmoid: bool = True
    flags: int = field(init=False)  # the options as the operators take them

    def __post_init__(self) -> None:
        flags = CIRCULAR * (self.padding_mode == "circular") + HARD_SIGMOID * (self.gate == "hard_sigmoid")
        flags += RELU * (self.activation == "relu") + CROSS_CHANNEL * self.cross_channel
        object.__setattr__(self, "flags", flags + SINGLE_SIGMOID * (not self.final_sigmoid))


_VALUES: Any = product(checks.PADDING_MODES, checks.GATES, checks.ACTIVATIONS, (False, True), (False, True))
_ALL: dict[Any, Options] = {values: Options(*values) for values in _VALUES}
_BY_FLAGS = {known.flags: known for known in _ALL.values()}


def options(
    padding_mode: object,
    gate: object,
    activation: object,
    cross_channel: object = False,
    final_sigmoid: object = True,
) -> Options:
    """The ``Options`` of these values; ValueError or TypeError naming the first invalid one."""
    try:
        return _ALL[padding_mode, gate, activation, cross_channel, final_sigmoid]
    except (KeyError, TypeError):
        checks.check_options(padding_mode, gate, activation)
        checks.flag("cross_channel", cross_channel)
        checks.flag("final_sigmoid", final_sigmoid)
        raise


def from_flags(flags: int) -> Options:
    """The ``Options`` in an operator's flags, without the bits of backward."""
    return _BY_FLAGS[flags & ~(GRAD_RESIDUAL | BATCH_STATISTICS)]
