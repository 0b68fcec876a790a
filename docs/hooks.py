# SPDX-License-Identifier: MIT
"""mkdocs: links out of docs/ work on a repository's page; the site, which lacks those files, names them instead, and
takes along the benchmark's pictures."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


def on_files(files: Files, config: Any) -> None:
    for path in RESULTS.glob("*.svg"):
        files.append(File.generated(config, f"pictures/{path.name}", content=path.read_bytes()))


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = markdown.replace('"../benchmarks/results/', '"../pictures/')
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
