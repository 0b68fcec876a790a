# SPDX-License-Identifier: MIT
"""The tuning table: launch plans that were measured to be faster than what the plan would choose."""

import json
import os
from pathlib import Path
from typing import Optional, Union

from ._ext import _C

VARIABLE = "ECA_CUDA_TUNING"


def load_tuning(path: Union[str, Path, None] = None) -> int:
    """Make the CUDA kernels follow a table that ``make gpu`` wrote, and return how many rules it has.

    The file is a JSON list of objects with ``direction``, ``dtype``, ``layout`` ("planes" or "rows"), ``n`` (0: any),
    ``c``, ``s``, ``blocks`` (of a sample; -1: the two-phase kernel) and ``threads`` (of a block), and perhaps ``parts``
    (of the positions) and ``variant`` (else for all of them); 0: as the plan finds. The first rule for a call counts,
    with residual and ReLU or without; one that does not fit the device is ignored, and with ECA_CUDA_BATCH_INVARIANT=1
    one for a single ``n``. None forgets the table. The file that the environment variable ECA_CUDA_TUNING names is
    loaded at import.

    Raises:
        OSError: if the file can't be read.
        ValueError: naming what was expected and what came; the table in use stays.
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
    """What ECA_CUDA_TUNING names, if it is set."""
    path = os.environ.get(VARIABLE)
    return load_tuning(path) if path else None
