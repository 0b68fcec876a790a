# SPDX-License-Identifier: MIT
"""mkdocs: a link out of docs/ works on a repository's page; the site, which lacks the file, names it instead."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"(?<!!)\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)", r"\1 (`\2`)", markdown)
