# SPDX-License-Identifier: MIT
"""From the lines that runs on a GPU leave behind to one file, tables, pictures and the page that shows them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results
from benchmarks.cases import Case, resnet50
from benchmarks.cli import main
from benchmarks.gpu import page, record, show, tables
from benchmarks.gpu.fold import fold, stem
from benchmarks.gpu.record import DONE, FAILED, Line, Record
from benchmarks.plan import Job
from benchmarks.results import GpuFacts, ModelRow
from benchmarks.timing import Timing

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "date": "2026-01-02T03:04:05",
    "threads": 8,
    "torch": "2.14",
    "eca_cuda": "0.1",
    "dry": False,
    "gpu": {"name": "NVIDIA Test 80GB", "driver": "1.2", "l2_bytes": 1 << 26},
}
PAGE = f"# Title\n\n<!-- gpu:begin -->\n{page.NOTHING}<!-- gpu:end -->\n"
README = f"# Title\n\n<!-- gpu-readme:begin -->\n{page.NOTHING}<!-- gpu-readme:end -->\n"


def timing(seconds: float) -> Timing:
    return Timing(seconds * 0.99, seconds, seconds * 1.01, 7, 1)


def layer_rows(case: Case, phase: str, seconds: dict[str, float]) -> list[dict[str, Any]]:
    job = Job(case, "eca", phase, "float16", "contiguous", tuple(seconds))
    rows = results.make_rows(job, 2, {name: timing(value) for name, value in seconds.items()})
    facts = [GpuFacts(timing(2e-5), 9e-6, 3_000_000, 1 << 28) for row in rows]
    return [asdict(replace(row, gpu=fact)) for row, fact in zip(rows, facts, strict=True)]


def network_rows(compiled: bool, seconds: dict[str, float]) -> list[dict[str, Any]]:
    shared = {"dtype": "float16", "layout": "channels_last", "compiled": compiled}
    return [asdict(ModelRow(name, "forward", 256, 224, timing(s), 10**9, **shared)) for name, s in seconds.items()]


LAYER1, LAYER4, SMALL = resnet50(256)[0], resnet50(256)[3], resnet50(1)[0]
LAYERS = {"eager": 6e-4, "compile": 4.5e-4, "fused": 3e-4, "clone": 2.85e-4}
OTHERS = {"eager": 6e-4, "triton": 4e-4, "fused": 3e-4, "clone": 2.85e-4}
EAGER = {"plain": 0.1, "eager": 0.13, "converted": 0.11, "residual": 0.105}
COMPILED = {"plain": 0.1, "eager": 0.12, "residual": 0.101, "inline": 0.1}
LINES = [
    Line("limit", "environment", DONE, found={"environment": [ENVIRONMENT]}),
    Line("correctness", "kernels", DONE, 80.0, "...\n2000 passed in 79.0s\n"),
    Line("sanitize", "racecheck", FAILED, 9.0, "ERROR SUMMARY: 1 error\n"),
    Line("limit", "a", DONE, found={"limit": [
        {"name": name, "map_bytes": 1 << 30, "gb_per_s": rate, "timing": asdict(timing(1.0))}
        for name, rate in (("clone", 3000.4), ("negate", 2900.6))
    ]}),
    Line("kernels", "a", DONE, found={
        "rows": layer_rows(LAYER1, "forward", LAYERS),
        "states": [{"job": "a", "before": {"clocks.sm": "1980"}, "after": {"clocks.sm": "1755"}}],
    }),
    Line("kernels", "b", DONE, found={"rows": layer_rows(LAYER1, "training", LAYERS)}),
    Line("kernels", "c", DONE, found={"rows": layer_rows(SMALL, "forward", LAYERS)}),
    Line("kernels", "d", DONE, found={
        "rows": layer_rows(LAYER4, "residual_forward", OTHERS),
        "refused": [
            {"job": job, "provider": "timm", "reason": "ValueError: [/a] | b", "error": "..."} for job in ("a", "b")
        ],
    }),
    Line("two-phase", "a", DONE, found={"rows": layer_rows(LAYER1, "forward", {"two-phase": 4.2e-4})}),
    Line("profile", "figures", DONE, found={"profiled": [
        {"call": "layer1", "kernel": "eca_forward_kernel", "figures": {"Duration": "101.31 us", "L2 Hit Rate": "12 %"}}
    ]}),
    Line("models", "a", DONE, found={"models": network_rows(False, EAGER)}),
    Line("models", "b", DONE, found={"models": network_rows(True, COMPILED)}),
    Line("sweep", "a", DONE, found={"sweep": [{
        "job": asdict(Job(LAYER1, "eca", "backward", "float16", "contiguous", ("fused", "clone"))),
        "own": "16/1/512",
        "timings": {
            name: asdict(timing(value))
            for name, value in (("clone", 2e-4), ("rule", 3e-4), ("8/1/256", 3.2e-4), ("-1/0/0", 2.4e-4))
        },
        "tried": {},
        "wrong": {"16/1/256": "wrong"},
    }]}),
]  # fmt: skip


def write(folder: Path, lines: Sequence[Line]) -> Path:
    written = Record(folder)
    for line in lines:
        written.write(line)
    return written.path


@pytest.fixture
def folded(tmp_path: Path) -> results.Results:
    return fold([write(tmp_path, LINES)])


# --- folding -------------------------------------------------------------------------------------------------------


def test_lines_of_several_runs_become_one_file(tmp_path: Path, folded: results.Results) -> None:
    first, second = write(tmp_path / "1", LINES[:6]), write(tmp_path / "2", [LINES[0], *LINES[5:]])
    assert fold([first, second]) == folded
    results.save(folded, tmp_path / "gpu.json")
    assert results.load(tmp_path / "gpu.json") == folded
    assert stem(folded.environment) == "test-80gb"
    assert len(folded.rows) == 17 and folded.rows[2].gpu == GpuFacts(timing(2e-5), 9e-6, 3_000_000, 1 << 28)
    assert len(folded.models) == 8 and folded.models[-1].compiled


def test_of_a_unit_that_two_runs_have_the_last_counts(tmp_path: Path) -> None:
    again = replace(LINES[4], found={"rows": layer_rows(LAYER1, "forward", {"fused": 1.0})})
    found = fold([write(tmp_path / "1", LINES[:5]), write(tmp_path / "2", [LINES[0], again])])
    assert [row.timing.q50 for row in found.rows] == [1.0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dry": True}, "got those of a rehearsal"),
        ({"torch": "2.11"}, "expected results with one torch, got 2.11, 2.14"),
        ({"gpu": {"name": "Other", "driver": ""}}, "expected results with one GPU, got NVIDIA Test 80GB, Other"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    other = replace(LINES[0], found={"environment": [ENVIRONMENT | change]})
    files = [write(tmp_path / "1", LINES[:5]), write(tmp_path / "2", [other])]
    with pytest.raises(ValueError, match=expected):
        fold(files)


def test_results_of_other_sources_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "sources", lambda: "before")
    files = [write(tmp_path / "1", LINES[:2])]
    assert fold(files).environment["sources"] == "before"
    monkeypatch.setattr(record, "sources", lambda: "after")
    failed, shown = LINES[2], Line("report", "tables", DONE)
    fold([*files, write(tmp_path / "2", [failed, shown])])  # nothing of them is evidence
    with pytest.raises(ValueError, match=r"one state of csrc, eca_cuda and setup.py, got after, before"):
        fold([*files, write(tmp_path / "3", LINES[3:4])])


def test_results_without_a_measurement_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected results of a step that measures, got none"):
        fold([write(tmp_path, LINES[1:3])])


# --- tables --------------------------------------------------------------------------------------------------------


def test_tables_show_what_was_measured(folded: results.Results) -> None:
    shown = {name: make(folded) for name, make in tables.GPU_TABLES.items()}
    assert "| 1024 MiB | 3000 | 2901 |" in shown["gpu-limit"]
    labels, times = (
        "resnet50 layer1, 256 x 56 x 56 | 256 | forward | float16 | contiguous",
        "600 us | 450 us | 300 us | 285 us",
    )
    compared = "95% | 2.00x | 1.50x | 3.0 / 3.0 / 3.0"
    assert f"| {labels} | {times} | {compared} |" in shown["gpu-layers"]
    other = "resnet50 layer4, 2048 x 7 x 7 | 256 | forward + residual, relu | float16 | contiguous"
    assert other not in shown["gpu-layers"] and labels not in shown["gpu-other-layers"]
    compared = "143% | 2.00x | 1.33x | 3.0 / 3.0 / 3.0"
    assert f"| {other} | 600 us | 400 us | 300 us | 285 us | {compared} |" in shown["gpu-other-layers"]
    assert f"| {labels} | 300 us | 420 us | 1.40x |" in shown["gpu-two-phase"]
    assert shown["gpu-two-phase"].count("resnet50") == 1
    assert "| layer1 | eca_forward_kernel | 101.31 us |  | 12 % |  |  |" in shown["gpu-profiled"]
    assert "| timm | ValueError: [/a] / b | a | 2 |" in shown["gpu-refusals"]
    assert "| resnet50 layer1, 256 x 56 x 56 | 256 | training | 238% |" in shown["gpu-shares"]
    assert "| fused | 300 us | 20.0 us | 9.00 us | 3.0 MB |" in shown["gpu-launches"]
    network = "| forward | 256 | float16 channels_last |"
    assert f"{network} eager | none | 2560 |  | 1000 |" in shown["gpu-networks"]
    assert f"{network} eager | timm's | 1969 | +30.0% | 1000 |" in shown["gpu-networks"]
    assert f"{network} eager | converted | 2327 | +10.0% | 1000 |" in shown["gpu-networks"]
    assert f"{network} compiled | converted, residuals fused | 2535 | +1.0% | 1000 |" in shown["gpu-networks"]
    swept = "256 | backward | float16 | contiguous | 16/1/512 100% | two-phase 125% | 8/1/256 94% |  | 1.25x | 1 |"
    assert f"| resnet50 layer1, 256 x 56 x 56 | {swept}" in shown["gpu-sweep"]
    assert "| correctness | kernels | done | 80 s | 2000 passed in 79.0s |" in shown["gpu-checks"]
    assert "| sanitize | racecheck | failed | 9 s | ERROR SUMMARY: 1 error |" in shown["gpu-checks"]
    assert shown["gpu-environment"].startswith(
        "NVIDIA Test 80GB, driver 1.2, torch 2.14, 2026-01-02. Calls used maps in turn of at least 4.0 times the bytes "
        "of the L2 cache. clocks.sm 1755 to 1980"
    )


def test_the_end_of_the_output_shows_whole_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is folded or cut off where there is no terminal, and a caller sees only the last 12,000 characters."""
    show.main([str(write(tmp_path, LINES))])
    shown = capsys.readouterr().out[-12_000:]
    for text in (
        "resnet50 layer1, 256 x 56 x 56",
        "peak MB: eager / compile / fused",
        "101.31 us",
        "ValueError: [/a] / b",
    ):
        assert text in shown
    assert "…" not in shown


def test_goals_compare_what_the_run_covers(folded: results.Results) -> None:
    goals = {goal.what.split(",")[0] + goal.what.partition(",")[2][:7]: goal for goal in tables.goals(folded)}
    forward = goals["forward least "]
    assert (forward.measured, forward.met) == (pytest.approx(0.95), True)
    assert goals["backward least "].met is None
    assert goals["forward times "].measured == pytest.approx(1.5)
    cost = goals["compiled network most t"]
    assert cost.measured == pytest.approx(0.01) and cost.met is True
    slow = replace(folded, rows=[replace(row, share_of_clone=0.5) for row in folded.rows])
    assert tables.goals(slow)[0].met is False
    assert all(goal.met is None for goal in tables.goals(results.Results(ENVIRONMENT, [])))


def test_readme_says_what_a_layer_gains_and_what_a_network_pays(folded: results.Results) -> None:
    text = page.rebuild(README, "gpu-readme", {"test": folded})
    assert "| Test 80GB, forward | 95%, 2.00x, 1.50x |  |  |  |" in text
    assert "| Test 80GB, training | 238%, 2.00x, 1.50x |  |  |  |" in text
    costs = (
        "eager forward (batch 256, float16) +30.0%, converted **+5.0%**; compiled forward (batch 256, float16) +20.0%"
    )
    assert f"* NVIDIA Test 80GB, driver 1.2, torch 2.14, 2026-01-02. ECA adds to a ResNet-50-D: {costs}" in text
    assert page.NOTHING not in text and page.rebuild(text, "gpu-readme", {}) == README


def test_readme_has_room_for_two_gpus(folded: results.Results) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(page.rebuild(text, "gpu-readme", {"a": folded, "b": folded}).splitlines()) <= 200


# --- the page and the command --------------------------------------------------------------------------------------


def test_the_command_folds_draws_and_writes_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written, readme = tmp_path / "gpu.md", tmp_path / "README.md"
    written.write_text(PAGE)
    readme.write_text(README)
    (tmp_path / "results").mkdir()
    path = write(tmp_path, LINES)
    options = ["--readme", str(readme), "--page", str(written), "--results", str(tmp_path / "results")]
    assert main(["report", str(path), *options]) == 0
    pictures = {file.name for file in (tmp_path / "results").glob("*.png") if file.stat().st_size > 10_000}
    assert pictures == {"test-80gb-share.png", "test-80gb-time.png", "test-80gb-cost.png"}
    text = written.read_text()
    assert "### NVIDIA Test 80GB" in text and page.NOTHING not in text and text.startswith("# Title\n")
    assert all(f"test-80gb{end}" in text for end in (".json", "-share.png", "-time.png", "-cost.png"))
    summary = readme.read_text()
    assert "Test 80GB, forward" in summary and page.NOTHING not in summary
    # From the JSON alone the same pages come out.
    assert main(["report", str(tmp_path / "results/test-80gb.json"), *options]) == 0
    assert written.read_text() == text and readme.read_text() == summary


def test_the_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="expected <!-- gpu:begin --> and <!-- gpu:end -->, got none"):
        page.rebuild("no marks", "gpu", {})


@pytest.mark.parametrize(("file", "mark"), [("docs/gpu.md", "gpu"), ("README.md", "gpu-readme")])
def test_the_committed_pages_show_the_committed_results(file: str, mark: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    expected = page.rebuild(text, mark, of_committed_gpus())
    assert expected == text, "run: python -m benchmarks report benchmarks/results/GPU.json"
    assert (page.NOTHING in text) == (not of_committed_gpus())


@pytest.mark.parametrize("file", ["README.md", "docs/kernels.md"])
def test_what_is_written_by_hand_says_whether_a_gpu_has_run(file: str) -> None:
    """What was measured is generated; that nothing was is not, and is to be rewritten with the first results."""
    by_hand = (ROOT / file).read_text(encoding="utf-8").replace(page.NOTHING, "")
    assert ("no gpu has run" in by_hand.lower()) == (not of_committed_gpus())


def of_committed_gpus() -> dict[str, results.Results]:
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    found = {path.stem: results.load(path) for path in files}
    assert found and not any(loaded.environment.get("dry") for loaded in found.values())
    return {name: loaded for name, loaded in found.items() if page.is_gpu(loaded)}


def test_a_report_needs_files_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "/nowhere/results.jsonl"])
    assert "argument FILE" in capsys.readouterr().err
