# SPDX-License-Identifier: MIT
"""Every name of torch that the package uses exists; make test-versions runs this with the oldest torch."""

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import eca_cuda

SOURCES = sorted(Path(eca_cuda.__file__).parent.rglob("*.py"))
GUARDED = {"_compat"}  # it uses names that only some versions have


def names_of_torch(tree: ast.Module) -> Iterator[str]:
    """All imports from torch, and every ``torch.a.b`` and ``alias.b`` in the code, as dotted names."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {a.asname or "torch": a.name if a.asname else "torch" for a in node.names if is_torch(a.name)}
            yield from (a.name for a in node.names if is_torch(a.name))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and is_torch(node.module or ""):
            aliases |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            yield from (f"{node.module}.{a.name}" for a in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in aliases and rest.replace(".", "").isidentifier():
                yield f"{aliases[root]}.{rest}"


def is_torch(module: str) -> bool:
    return module.partition(".")[0] == "torch"


def resolve(name: str) -> Any:
    """Imports the longest prefix that is a module, as a function of the same name may hide one."""
    parts, count = name.split("."), name.count(".") + 1
    while count > 1:
        try:
            importlib.import_module(".".join(parts[:count]))
            break
        except ModuleNotFoundError:
            count -= 1
    # Attributes of values are not resolved: a setting may hold an object of eca_cuda.
    step: Any = lambda owner, part: getattr(owner, part) if isinstance(owner, (ModuleType, type)) else owner  # noqa: E731
    return reduce(step, parts[count:], sys.modules[".".join(parts[:count])])


@pytest.mark.parametrize("source", [path for path in SOURCES if path.stem not in GUARDED], ids=lambda path: path.stem)
def test_every_name_of_torch_exists(source: Path) -> None:
    missing = []
    for name in sorted(set(names_of_torch(ast.parse(source.read_text(encoding="utf-8"))))):
        try:
            resolve(name)
        except AttributeError:
            missing.append(name)
    assert not missing, f"torch {torch.__version__} has no {', '.join(missing)}: guard it in _compat.py"


def test_the_names_are_found_and_a_missing_one_is_noticed() -> None:
    code = "import torch.nn.functional as F\nfrom torch.fx import Graph as G\nF.pad(torch.no.such(x), G.nodes)"
    names = set(names_of_torch(ast.parse(code)))
    assert names == {"torch.nn.functional", "torch.nn.functional.pad", "torch.fx.Graph", "torch.fx.Graph.nodes"}
    code = "import torch\ntorch.no.such(x).mean()"
    assert set(names_of_torch(ast.parse(code))) == {"torch", "torch.no", "torch.no.such"}
    with pytest.raises(AttributeError):
        resolve("torch.no.such")
