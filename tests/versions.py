# SPDX-License-Identifier: MIT
"""``make test-versions``: which tests pass under which torch and Python, and the pages' tables of it.

versions.py RESULT.json ARGUMENT...   run pytest with the arguments here, and write what happened
versions.py                           print the table of the last results
versions.py --write                   and write versions.json, docs/install.md's table and README.md's shorter one
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
PAGE = ROOT / "docs/install.md"
ON_GPUS = ROOT / "benchmarks/results"
BEGIN, END = "<!-- versions:begin -->\n", "<!-- versions:end -->"

# What an old torch lacks, by the last version that lacks it; the tests named say why.
UP_TO = {
    "2.11": "DTensors are refused where they have `lengths=` and in gradients of gradients "
    "([two_processes.py](../tests/two_processes.py)).",
    "2.10": "AOTInductor packages need `import torch._inductor.codecache` before they are loaded "
    "([test_export.py](../tests/torch/test_export.py)), and exported convolutions bounds on their sizes "
    "([test_compile.py](../tests/torch/test_compile.py)).",
}
# The same as a column for each feature: what stands there instead of "yes", up to which torch.
FEATURES = {
    "`convert`, `torch.compile`, AMP, DDP, FSDP2": {},
    "export, AOTInductor, ONNX": {"2.10": "AOTInductor: after an [import](docs/pytorch.md#export)"},
    "DTensor": {"2.11": "without `lengths=` and second derivatives"},
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
    """The table of docs/install.md, the newest torch first."""
    lines = ["| torch | Python | installed from | tests passed | skipped |", "| :-- | :-- | :-- | --: | --: |"]
    rows: dict[tuple[Any, ...], list[str]] = {}
    for r in sorted(results, key=lambda r: (release(r["torch"]), release(r["python"])), reverse=True):
        source = "the sources" if is_of_sources(r) else f"a wheel built with torch {r['built_with']}"
        rows.setdefault((r["torch"], source, r["passed"], r["skipped"]), []).append(r["python"])
    for (torch, source, passed, skipped), pythons in rows.items():
        lines.append(f"| {torch} | {', '.join(pythons)} | {source} | {passed:,} | {skipped} |")
    lines += ["", *(f"* Up to torch {version}: {what}" for version, what in UP_TO.items())]
    return "\n".join(lines) + "\n"


def summary(results: list[dict[str, Any]]) -> str:
    """README's table: a line for each torch, the newest first; what it ran on and which features work."""
    columns = ["torch", "Python", "CPU, and CUDA emulated", "on a GPU", *FEATURES]
    lines = ["| " + " | ".join(columns) + " |", "| :-- | :-- | :-- | :-- |" + " :-- |" * len(FEATURES)]
    gpus = on_gpus()
    for torch in sorted({release(r["torch"]) for r in results}, reverse=True):
        of = [r for r in results if release(r["torch"]) == torch]
        pythons = sorted({release(r["python"]) for r in of})
        names = [".".join(map(str, version)) for version in pythons]
        whole = 1 < len(pythons) == pythons[-1][1] - pythons[0][1] + 1
        shown = f"{names[0]} to {names[-1]}" if whole else ", ".join(names)
        counts = [r["passed"] for r in of]
        passed = dict.fromkeys(f"{count:,}" for count in (min(counts), max(counts)))  # one where they are equal
        cells = [f"{' to '.join(passed)} tests", ", ".join(gpus.get(torch, ["-"]))]
        cells += [says(limits, torch) for limits in FEATURES.values()]
        lines.append("| " + " | ".join([".".join(map(str, torch)), shown, *cells]) + " |")
    return "\n".join(lines) + "\n"


def says(limits: dict[str, str], torch: tuple[int, ...]) -> str:
    return next((what for version, what in limits.items() if torch <= release(version)), "yes")


def on_gpus() -> dict[tuple[int, ...], list[str]]:
    """The GPUs that committed results with tests are of, by torch."""
    found: dict[tuple[int, ...], list[str]] = {}
    for path in sorted(ON_GPUS.glob("*.jsonl"), reverse=True):
        environment = json.loads(path.read_text().splitlines()[0])["environment"]
        if environment["gpu"] and '"tests ' in path.read_text():
            found.setdefault(release(environment["torch"]), []).append(environment["gpu"]["name"].split()[1])
    return {torch: list(dict.fromkeys(names)) for torch, names in found.items()}


def is_of_sources(result: dict[str, Any]) -> bool:
    return str(result["target"]).startswith("test-python-")


def between(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    if sys.argv[1:] not in ([], ["--write"]):
        return run(Path(sys.argv[1]), sys.argv[2:])
    results = [json.loads(path.read_text()) for path in sorted(ROOT.glob("build/versions/*.json"))]
    print(table(results), summary(results), sep="\n")
    if "--write" in sys.argv:
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(r) for r in results) + "\n]\n")
        for page, made in ((PAGE, table(results)), (README, summary(results))):
            text = page.read_text()
            page.write_text(text.replace(BEGIN + between(text) + END, BEGIN + made + END))
    return 0


if __name__ == "__main__":
    sys.exit(main())
