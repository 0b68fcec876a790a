# SPDX-License-Identifier: MIT
"""Puts results into a README: everything between two markers is generated, never typed.

<!-- benchmark:begin cpu.goals -->
... the table "goals" made from cpu.json ...
<!-- benchmark:end cpu.goals -->
"""

import re

from .results import Results
from .tables import README_TABLES

_BEGIN = re.compile(r"<!-- benchmark:begin (\S+) -->\n")
_END = "<!-- benchmark:end {} -->"


def rebuild(text: str, stem: str, results: Results) -> str:
    """``text`` with every block named ``stem.table`` replaced; blocks of other result files stay as they are.

    ValueError if a block has no end or names a table that does not exist.
    """
    position = 0
    while begin := _BEGIN.search(text, position):
        name = begin[1]
        end = text.find(_END.format(name), begin.end())
        if end < 0:
            raise ValueError(f"expected {_END.format(name)} after its begin, got none")
        file, _, table = name.rpartition(".")
        if file == stem:
            if table not in README_TABLES:
                raise ValueError(
                    f"benchmark:begin {name}: expected a table of {', '.join(README_TABLES)}, got {table!r}"
                )
            text = text[: begin.end()] + README_TABLES[table](results) + "\n" + text[end:]
        position = begin.end()
    return text


def block_files(text: str) -> set[str]:
    """The stems of all result files that the blocks of ``text`` name."""
    return {name.rpartition(".")[0] for name in _BEGIN.findall(text)}
