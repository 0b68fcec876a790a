# SPDX-License-Identifier: MIT
"""``make test-versions``: which tests pass under which torch and Python, and README.md's table of it.

versions.py RESULT.json ARGUMENT...   run pytest with the arguments here, and write what happened
versions.py                           print the table of what was run last
versions.py --write                   and put it into README.md and versions.json
"""

import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests/versions.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- versions:begin -->\n", "<!-- versions:end -->"

# What an old torch lacks, by the last version that lacks it; the tests named say why.
UP_TO = {
    "2.11": "DTensors are refused where they have `lengths=` and in gradients of gradients "
    "([two_processes.py](tests/two_processes.py)).",
    "2.10": "AOTInductor packages need `import torch._inductor.codecache` before they are loaded "
    "([test_export.py](tests/torch/test_export.py)), and exported convolutions bounds on their sizes "
    "([test_compile.py](tests/torch/test_compile.py)).",
}


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


class Recorder:
    """A pytest plugin: how many tests passed, failed and were skipped."""

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.counts = {
            kind: len(terminalreporter.stats.get(kind, [])) for kind in ("passed", "skipped", "failed", "error")
        }


def run(result: Path, arguments: list[str]) -> int:
    import torch

    from eca_cuda._ext import _C

    recorder = Recorder()
    status = pytest.main(["-q", "-p", "no:cacheprovider", "-W", "ignore", *arguments], plugins=[recorder])
    facts = {"torch": torch.__version__, "python": platform.python_version(), "built_with": _C.build_info()["torch"]}
    result.write_text(json.dumps({"target": result.stem} | facts | recorder.counts) + "\n")
    return int(status)


def table(results: list[dict[str, Any]]) -> str:
    """README's table, the newest torch first."""
    lines = ["| torch | Python | installed from | tests passed | skipped |", "| :-- | :-- | :-- | --: | --: |"]
    rows: dict[tuple[Any, ...], list[str]] = {}
    for r in sorted(results, key=lambda r: (release(r["torch"]), release(r["python"])), reverse=True):
        source = "the sources" if is_of_sources(r) else f"a wheel built with torch {r['built_with']}"
        rows.setdefault((r["torch"], source, r["passed"], r["skipped"]), []).append(r["python"])
    for (torch, source, passed, skipped), pythons in rows.items():
        lines.append(f"| {torch} | {', '.join(pythons)} | {source} | {passed:,} | {skipped} |")
    lines += ["", *(f"* Up to torch {version}: {what}" for version, what in UP_TO.items())]
    return "\n".join(lines) + "\n"


def is_of_sources(result: dict[str, Any]) -> bool:
    return str(result["target"]).startswith("test-python-")


def between(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    if sys.argv[1:] not in ([], ["--write"]):
        return run(Path(sys.argv[1]), sys.argv[2:])
    results = [json.loads(path.read_text()) for path in sorted(ROOT.glob("build/versions/*.json"))]
    print(table(results))
    if "--write" in sys.argv:
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
        text = README.read_text()
        README.write_text(text.replace(BEGIN + between(text) + END, BEGIN + table(results) + END))
    return 0


if __name__ == "__main__":
    sys.exit(main())
