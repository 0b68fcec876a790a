# SPDX-License-Identifier: MIT
"""Writes results into pages: the text between two markers is generated.

<!-- benchmark:begin cpu.goals -->
... the table "goals" (tables.BY_NAME) made from benchmarks/results/cpu.jsonl ...
<!-- benchmark:end cpu.goals -->

The table "speed" is of several files: ``<!-- benchmark:begin cpu+cpu-block.speed -->``.
"""

import re
import subprocess
from pathlib import Path

from .results import ROOT, Results, show, sources, write, write_whole
from .summary import speed
from .tables import BY_NAME

TABLES = {**BY_NAME, "speed": lambda *runs: speed(*runs).markdown()}

_BEGIN = re.compile(r"<!-- benchmark:begin (\S+) -->\n")
_END = "<!-- benchmark:end {} -->"


def rebuild(text: str, folder: Path) -> str:
    """``text`` with every block generated from the files in ``folder``.

    ValueError if a block has no end or names an unknown table, OSError if its file does not exist.
    """
    position = 0
    while begin := _BEGIN.search(text, position):
        name = begin[1]
        file, _, table = name.rpartition(".")
        end = text.find(_END.format(name), begin.end())
        if end < 0:
            raise ValueError(f"benchmark:begin {name}: expected {_END.format(name)} after it, got none")
        if table not in TABLES:
            raise ValueError(f"benchmark:begin {name}: expected one of {', '.join(TABLES)}, got {table!r}")
        paths = [folder / f"{stem}.jsonl" for stem in file.split("+")]
        text = text[: begin.end()] + show(TABLES[table], *paths) + "\n" + text[end:]
        position = begin.end()
    return text


def pictures(text: str) -> list[tuple[str, str]]:
    """The pictures that a page shows, as (stem, name)."""
    return list(dict.fromkeys(re.findall(r"results/([\w-]+)-(share|time|cost)-(?:light|dark)\.svg", text)))


def rebuild_page(page: Path, folder: Path) -> None:
    """Rewrite a page; an error leaves it unchanged."""
    write_whole(page, rebuild(page.read_text(encoding="utf-8"), folder))


def add(found: Results, folder: Path) -> Path:
    """Keep results of a GPU as ``GPU-DAY.jsonl``. ValueError for results of a dry run or of a CPU."""
    if found.environment["dry"] or not found.environment["gpu"]:
        raise ValueError("expected results of a GPU, got results of a dry run or of a CPU")
    if found.environment["sources"] == sources():
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        found.environment["commit"] = done.stdout.strip()
    words = re.findall(r"[a-z0-9]+", found.environment["gpu"]["name"].lower())
    kept = folder / f"{next(word for word in words if word != 'nvidia')}-{found.environment['date'][:10]}.jsonl"
    write(kept, found)
    return kept
