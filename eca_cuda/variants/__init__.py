# SPDX-License-Identifier: MIT
"""A file for each variant: its function, its layer, and its entry in the table. Every file here is imported.

A new variant is one more file like ``eca.py``, and one gate in csrc/gates/: csrc/README.md has the steps.
"""

import importlib
import pkgutil

from .. import checks, table

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_file.name}", __name__)

for _name in checks.PARAMETERS:
    if _name not in table.VARIANTS:
        raise ImportError(
            f"{_name}: expected a file of eca_cuda/variants/ that registers it (csrc/gates/registry.h), got none"
        )
