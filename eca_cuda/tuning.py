# SPDX-License-Identifier: MIT
"""The tuning table: launch plans that were measured to be faster than the plan's own choice."""

import json
import os
from pathlib import Path
from typing import Optional, Union

from ._ext import _C

VARIABLE = "ECA_CUDA_TUNING"


def load_tuning(path: Union[str, Path, None] = None) -> int:
    """Make the CUDA kernels follow a table written by ``make gpu``; return its number of rules.

    The file is a JSON list of objects. A rule applies to calls with its ``direction``, ``dtype``, ``layout`` ("planes"
    for contiguous, "rows" for channels_last or s = 1), ``n`` (0: any), ``c``, ``s`` (positions) and, if given,
    ``variant``, with or without residual and ReLU. It sets ``blocks`` (of a sample; -1: the two-phase kernel),
    ``threads`` (of a block) and optionally ``parts`` (of the positions); 0 leaves a value to the plan. The first rule
    for a call is used. Rules that do not fit the device are ignored, and so are rules for one ``n`` with
    ECA_CUDA_BATCH_INVARIANT=1.

    ``path=None`` removes the table. The file named by the environment variable ECA_CUDA_TUNING is loaded at import.

    Raises:
        OSError: if the file can't be read.
        ValueError: naming what was expected and what was given; the table in use is kept.
    """
    if path is None:
        _C.set_tuning([])
        return 0
    try:
        rules = json.loads(Path(path).read_text())
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            raise ValueError("expected a list of objects")
        _C.set_tuning(rules)
    except (ValueError, RuntimeError, TypeError) as error:  # pybind11's casts raise the last two
        raise ValueError(f"tuning table {path}: {error}") from error
    return len(rules)


def load_from_environment() -> Optional[int]:
    """Load the table named by ECA_CUDA_TUNING, if it is set."""
    path = os.environ.get(VARIABLE)
    return load_tuning(path) if path else None
