# SPDX-License-Identifier: MIT
"""Loads the compiled library, or raises a one-line ImportError with the reason and the remedy."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ._compat import TORCH

_BUILD = "pip install . (in a checkout; it needs torch and a C++ compiler)"
_MINIMUM_TORCH = (2, 10)
_NAME = f"{__package__}._C"  # the package may run under another name


def _load() -> ModuleType:
    if TORCH < _MINIMUM_TORCH:
        raise ImportError(f"eca_cuda needs torch >= 2.10, found {torch.__version__}: upgrade torch")
    try:
        spec, module = importlib.util.find_spec(_NAME), importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
        present = sorted(path.name for path in Path(__file__).parent.glob("_C*.so"))
        if present:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            message = f"eca_cuda was built for another Python ({present[0]}), this is {version}: {_BUILD}"
            raise ImportError(message) from None
        raise ImportError(f"eca_cuda is not built: {_BUILD}") from None
    except ImportError as error:
        message = f"eca_cuda was built for another torch or machine than torch {torch.__version__} here"
        raise ImportError(f"{message} ({error}): rebuild with {_BUILD}") from error
    # For a second library of the same name, pybind11 returns the module of the first one.
    is_another = spec is not None and not os.path.samefile(str(spec.origin), str(module.__file__))
    if is_another or not module.IS_FIRST_COPY:  # torch keeps the operators registered first: csrc/library.h
        raise ImportError("eca_cuda: another copy of the library is loaded in this process: import only one of them")
    return module


_C: Any = _load()
