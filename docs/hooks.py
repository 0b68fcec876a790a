# SPDX-License-Identifier: MIT
"""mkdocs: what pages of docs/ link to outside of docs/ becomes a part of the site, or a link to the repository.

While ``repo_url`` is not set in mkdocs.yml, each file that is linked gets a page ``source/...``: Markdown as it reads,
code highlighted; data are copied. The benchmark's pictures come along in both modes; the theme shows the one that fits.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
LINK = re.compile(r"(?<!!)(\[[^\]]+\]\()([^)\s#]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r'<picture><source [^>]*><img alt="([^"]+)" src="[^"]*?([\w-]+)-light\.svg"></picture>')
ROLE = re.compile(r":(?:func|class):<code>(\w+)</code>")
LANGUAGES = {
    ".h": "cpp",
    ".cpp": "cpp",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".py": "python",
    ".yml": "yaml",
    ".toml": "toml",
}
DATA = (".json", ".jsonl")

_origins: dict[str, Path] = {}  # of pages made here: their file in the repository


def on_files(files: Files, config: Any) -> None:
    for path in RESULTS.glob("*.svg"):
        files.append(File.generated(config, f"pictures/{path.name}", content=path.read_bytes()))
    _origins.clear()
    waiting = [] if config.repo_url else [(ROOT / "docs" / f.src_uri) for f in files.documentation_pages()]
    while waiting:
        for target in _targets(waiting.pop()):
            uri = _uri(target)
            if files.get_file_from_path(uri) is None:
                content = target.read_bytes() if target.suffix in DATA else _page(target)
                files.append(File.generated(config, uri, content=content))
                if target.suffix == ".md":
                    waiting.append(target)
                _origins[uri] = target


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    here = _origins.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    if here.suffix != ".md":
        return markdown
    folder = os.path.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = _resolve(here, found[2])
        if target is None:
            return found[0]
        uri, anchor = _uri(target), found[3] or ""
        if config.repo_url and uri.startswith("source/"):
            return f"{found[1]}{config.repo_url.rstrip('/')}/blob/main/{target.relative_to(ROOT)}{anchor})"
        return f"{found[1]}{os.path.relpath(uri, folder or '.')}{anchor})"

    def picture(found: re.Match[str]) -> str:
        files = (
            os.path.relpath(f"pictures/{found[2]}-{mode}.svg#only-{mode}", folder or ".") for mode in ("light", "dark")
        )
        return "".join(f"![{found[1]}]({file})" for file in files)

    return LINK.sub(link, PICTURE.sub(picture, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name other functions as Sphinx does: a link where the page has them."""

    def role(found: re.Match[str]) -> str:
        anchor = re.search(rf'id="(eca_cuda(?:\.\w+)*\.{found[1]})"', html)
        code = f"<code>{found[1]}</code>"
        return f'<a href="#{anchor[1]}">{code}</a>' if anchor else code

    return ROLE.sub(role, html)


def _targets(path: Path) -> list[Path]:
    """What a page links to outside of docs/."""
    found = (_resolve(path, link[2]) for link in LINK.finditer(path.read_text(encoding="utf-8")))
    return [target for target in found if target and _uri(target).startswith("source/")]


def _resolve(page: Path, link: str) -> Path | None:
    """The file that a link of a page leads to, of a folder its README.md; None for what is no file here."""
    target = Path(os.path.normpath(page.parent / link))
    if target.is_dir():
        target = target / "README.md"
    return target if target.is_file() and ROOT in target.parents else None


def _uri(path: Path) -> str:
    """Where a file of the repository stands in the site."""
    name = PurePosixPath(path.relative_to(ROOT).as_posix())
    if name.parts[0] == "docs":
        return str(name.relative_to("docs"))
    if str(name) == "README.md":
        return "index.md"
    return f"source/{name}" if name.suffix in (".md", *DATA) else f"source/{name}.md"


def _page(path: Path) -> str:
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {name}\nsearch: {{exclude: true}}\n---\n"
    if path.suffix == ".md":
        return head + text
    return f'{head}# {name}\n\n~~~~~~~~ {{.{LANGUAGES.get(path.suffix, "text")} linenums="1"}}\n{text}~~~~~~~~\n'
