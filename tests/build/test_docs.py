# SPDX-License-Identifier: MIT
"""The documentation is true: its code runs, its commands exist, its links lead somewhere, and its site builds."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch

import eca_cuda

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What the fragments of a page that shows no whole program take for granted.
GIVEN = {"pytorch.md": "import eca_cuda, torch\nx = torch.randn(1, 8, 4, 4)\ncompiled_model = torch.nn.ReLU()\n"}
# Commands of a shell, by how they begin: make's are looked up in the Makefile, the others are run elsewhere.
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
    exec(GIVEN.get(path.name, ""), scope)
    for number, code in enumerate(blocks(path, "python")):
        exec(compile(code, f"{path.name}, block {number}", "exec"), scope)
    eca_cuda.compile_mode("auto")
    torch.compiler.reset()


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_commands_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)) | {""}
    for code in blocks(path, "sh", ""):
        for line in filter(None, code.splitlines()):
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


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "convert/index.html").exists()
    pictures = [tmp_path / "pictures" / f"cpu-{name}-light.svg" for name in ("share", "time")]
    page = (tmp_path / "benchmark/index.html").read_text(encoding="utf-8")
    for path in pictures:
        assert b"<svg" in path.read_bytes() and f'src="../pictures/{path.name}"' in page
    assert "(<code>csrc/README.md</code>)" in (tmp_path / "kernels/index.html").read_text(encoding="utf-8")
