# SPDX-License-Identifier: MIT
"""Loads the compiled library, or says in one line why it can't be loaded and what to do."""

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
_NAME = f"{__package__}._C"  # the package may run under another name, as from Hugging Face's kernels
_HUB = f"{__package__}._ops"  # written by kernel-builder, which gives library and operators names of the build's own


def _load() -> tuple[ModuleType, Any]:
    """The library's module, and the namespace that holds its operators."""
    if TORCH < _MINIMUM_TORCH:
        raise ImportError(f"eca_cuda needs torch >= 2.10, found {torch.__version__}: upgrade torch")
    if importlib.util.find_spec(_HUB) is not None:
        operators = importlib.import_module(_HUB).ops
        return _first_copy(sys.modules[f"{__package__}.{operators.name}"]), operators
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
    # pybind11 gives a library that is imported again the module of the first one by that name.
    is_another = spec is not None and not os.path.samefile(str(spec.origin), str(module.__file__))
    return _first_copy(module, is_another), torch.ops.eca_cuda


def _first_copy(module: ModuleType, is_another: bool = False) -> ModuleType:
    """``module``; refused if another file has registered the operators, as torch keeps those (csrc/library.h)."""
    if is_another or not module.IS_FIRST_COPY:
        raise ImportError("eca_cuda: another copy of the library is loaded in this process: import only one of them")
    return module


_C, OPERATORS = _load()
