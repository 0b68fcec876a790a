# SPDX-License-Identifier: MIT
"""A file for each variant: its function, its layer, and its entry in the table. Every file here is imported.

A new variant is one more file like ``eca.py``, and one gate in csrc/gates/: csrc/README.md has the steps.
"""

import importlib
import pkgutil

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f".{_file.name}", __name__)
