# SPDX-License-Identifier: MIT
"""mkdocs: links out of docs/ work on a repository's page; the site, which lacks those files, names them instead, and
draws the benchmark's pictures afresh from the results that are committed."""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./benchmarks/results/(\w+)(-\w+\.png\))")


def on_files(files: Files, config: Any) -> None:
    text = "".join(page.content_string for page in files.documentation_pages())
    sys.path.insert(0, str(ROOT))
    from benchmarks import plots, results

    for stem in {found[2] for found in PICTURE.finditer(text)}:
        with tempfile.TemporaryDirectory() as folder:
            for path in plots.save_all(results.load(ROOT / f"benchmarks/results/{stem}.json"), Path(folder), stem):
                files.append(File.generated(config, f"pictures/{path.name}", content=path.read_bytes()))


def on_page_markdown(markdown: str, **_: Any) -> str:
    markdown = PICTURE.sub(r"\1pictures/\2\3", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
