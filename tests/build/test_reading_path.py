# SPDX-License-Identifier: MIT
"""The table "One forward pass on a GPU" of csrc/README.md: its line counts are true, and their sum is small."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "csrc/README.md"
MOST = 1000


def python_lines(path: Path, name: str) -> int:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name and node.end_lineno:
            return node.end_lineno - node.lineno + 1
    raise AssertionError(f"{path} has no {name}")


def cpp_lines(path: Path, name: str) -> int:
    """Lines of a definition, from the line with its name to its closing brace; A::b is a member of A."""
    lines = path.read_text().splitlines()
    first, last = -1, len(lines)
    for part in name.split("::"):
        first, last = definition(lines, first + 1, last, part) or (0, 0)
        assert last, f"{path} has no {name}"
    return last - first


def definition(lines: list[str], begin: int, end: int, name: str) -> tuple[int, int] | None:
    """Of the definition of ``name`` in ``lines[begin:end]``, the first line and the one after the last."""
    begins = re.compile(rf"^ *(?:struct|class) {name}\b(?!.*;$)|^ *(?:[\w:<>,&* ]+[ *&])?{name}\(")
    for first in range(begin, end):
        if not begins.search(lines[first]) or re.match(r" *return ", lines[first]):
            continue
        indent = len(lines[first]) - len(lines[first].lstrip())
        for last in range(first, end):
            closes = re.match(rf"^ {{{indent}}}\}}", lines[last])
            if closes or (last == first and re.search(r"\}(  //.*)?$", lines[last])):
                return first, last + 1
            if lines[last].endswith(";") and "{" not in "".join(lines[first : last + 1]):
                break  # a declaration
    return None


def rows() -> list[tuple[str, list[str], int]]:
    section = README.read_text().split("## One forward pass on a GPU")[1].split("\n## ")[0]
    found = re.findall(r"^\| [\w', 0-9]+ \| `(.+?)` \| (.+?) \| (\d+) \|$", section, re.MULTILINE)
    return [(file, re.findall(r"`([\w:]+)`", names), int(count)) for file, names, count in found]


def counted(file: str, names: list[str]) -> int:
    path = (README.parent / file).resolve()
    return sum((python_lines if path.suffix == ".py" else cpp_lines)(path, name) for name in names)


def test_the_counts_are_true() -> None:
    assert len(rows()) == 23
    wrong = {file: counted(file, names) for file, names, count in rows() if counted(file, names) != count}
    assert not wrong, f"csrc/README.md should say {wrong}"


def test_the_sum_is_small() -> None:
    total = re.search(r"^\| in all \| \| \| (\d+) \|$", README.read_text(), re.MULTILINE)
    assert total and int(total[1]) == sum(count for *_, count in rows()) <= MOST
