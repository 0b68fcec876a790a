# SPDX-License-Identifier: MIT
"""The documentation is true: its code runs, its commands exist, its links lead somewhere, and its site builds."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

import eca_cuda

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Beginnings of shell commands, and the files that run such commands; targets of make are looked up in the Makefile.
TESTED = {
    "python -m eca_cuda.info": "test_info.py",
    "python -m benchmarks": "test_benchmarks.py",
    "torchrun --nproc-per-node 2 examples/distributed.py": "test_distributed.py",
    "pip install": "test_build.py",
}


def page_id(path: Path) -> str:
    return path.name


def blocks(path: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(path.read_text(encoding="utf-8")) if language in languages]


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    kinds = {language for path in PAGES for language, _ in BLOCK.findall(path.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "sh", "", "bibtex"}


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=page_id)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_python_blocks_run_in_order(path: Path) -> None:
    scope: dict[str, object] = {"__name__": "docs"}
    for number, code in enumerate(blocks(path, "python")):
        exec(compile(code, f"{path.name}, block {number}", "exec"), scope)
    eca_cuda.compile_mode("auto")
    torch.compiler.reset()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)) | {""}
    for code in blocks(path, "sh", ""):
        for line in filter(None, code.splitlines()):
            line = re.sub(r"^(\w+=\S+ )+", "", line)  # environment variables
            if line.startswith("make"):
                assert re.match(r"make ?([a-z-]*)", line)[1] in targets, line
            else:
                assert any(line.startswith(command) for command in TESTED), line


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target}"


@pytest.fixture
def server() -> Iterator[str]:
    """A site with one page."""

    class OnePage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/here" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), OnePage) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    "target, status, says",
    [
        ("/here", 0, "0 of 1 links are gone"),
        ("/there", 1, "1 of 1 links are gone"),
        (None, 0, "NOT CHECKED, no answer from the network: 1 of 1 links"),
    ],
)
def test_make_links_tells_what_is_gone_from_what_was_not_asked(target, status, says, server, tmp_path) -> None:
    url = server + target if target else "http://127.0.0.1:1/nobody-listens"
    (tmp_path / "page.md").write_text(f"A [link]({url}).")
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    command = [sys.executable, ROOT / "docs/links.py", tmp_path / "page.md"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, says in done.stdout) == (status, True), done.stdout + done.stderr


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as by `make docs`."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def read(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert all((site / f"{path.stem}.html").exists() for path in (ROOT / "docs").glob("*.md"))
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "mkdocs build" in line]
    assert "NO_MKDOCS_2_WARNING=1" in line and "--strict" in line


def test_pictures_and_pages_fit_light_and_dark(site: Path) -> None:
    page = read(site, "benchmark.html")
    for mode in ("light", "dark"):
        assert f'src="pictures/cpu-share-{mode}.svg#only-{mode}"' in page
        assert b"<svg" in (site / f"pictures/cpu-share-{mode}.svg").read_bytes()
        assert f'data-md-color-media="(prefers-color-scheme: {mode})"' in page
    assert len(re.findall(r'<input class="md-option"[^>]* name="__palette"', page)) == 3  # the system's, light, dark
    assert 'src="one-pass.svg"' in read(site, "index.html") and 'src="block.svg"' in read(site, "block.html")
    for name in ("one-pass.svg", "block.svg"):
        assert "@media (prefers-color-scheme:dark)" in read(site, name)


def test_code_is_highlighted_and_can_be_copied(site: Path) -> None:
    page = read(site, "index.html")
    assert '<span class="kn">import</span>' in page and "content.code.copy" in page


def test_the_reference_has_everything_that_is_public(site: Path) -> None:
    page = read(site, "api.html")
    for name in sorted({*eca_cuda.__all__} - {"__version__", "inductor"}):
        assert f'id="eca_cuda.{name}"' in page, name
    assert "Batch norm followed by ECA, in the passes over the map that batch norm alone needs." in page
    assert '<a href="#eca_cuda.eca"><code>eca</code></a>' in page and ":func:" not in page and ":class:" not in page


def test_all_links_of_the_site_lead_somewhere_and_nothing_is_fetched(site: Path) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\bid="([^"]+)"', text)) for path, text in pages.items()}
    for path, text in pages.items():
        assert not re.findall(
            r'<(?:script|img|iframe|link rel="stylesheet")[^>]* (?:src|href)="(?:https?:)?//', text
        ), path
        for target in re.findall(r' (?:src|href)="([^":]*)"', text) if path.name != "404.html" else ():
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), f"{path.relative_to(site)}: {target}"
            assert not anchor or file.suffix != ".html" or anchor in ids[file], f"{path.relative_to(site)}: {target}"


def test_links_to_sources_lead_to_pages_of_them(site: Path) -> None:
    assert 'href="source/csrc/index.html"' in read(site, "kernels.html")
    assert 'href="source/tests/torch/test_export.py.html"' in read(site, "pytorch.html")
    page = read(site, "source/tests/torch/test_export.py.html")
    assert '<span class="k">def</span>' in page and "SPDX-License-Identifier" in page
    assert (site / "source/benchmarks/results/cpu-compile-mode.jsonl").exists()


def test_links_to_sources_lead_to_the_repository_once_its_address_is_known() -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="kernels.md"))
    config = SimpleNamespace(repo_url="https://example.org/eca_cuda/")
    shown = hooks.on_page_markdown("[a](../csrc/README.md#layouts) [b](gpu.md#results) [c](../none.md)", page, config)
    of_repository = "https://example.org/eca_cuda/blob/main/csrc/README.md#layouts"
    assert shown == f"[a]({of_repository}) [b](gpu.md#results) [c](../none.md)"
