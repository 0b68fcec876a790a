# SPDX-License-Identifier: MIT
"""The benchmark suite: it measures what it says, refuses what is wrong, and README shows what was measured."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import analysis, cases, compare, plan, report, results, run, tables, timing, traffic
from benchmarks.cli import main
from benchmarks.providers import EagerECA, EagerReference
from benchmarks.timing import Budget, Timing
from eca_cuda import functional
from eca_cuda.testing import ECA, VARIANTS, make_x

ROOT = Path(__file__).parents[1]
TINY_RUN = ["--suite", "tiny", "--quick", "--threads", "1", "--provider", "eager", "fused", "clone"]


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def make_row(
    provider: str, seconds: float, *, phase: str = "forward", spread: float = 0.1, **changes: Any
) -> results.Row:
    case = changes.pop("case", cases.resnet50(8)[0])
    job = plan.Job(case, "eca", phase, "float32", "contiguous", (provider,))
    timed = Timing(seconds * (1 - spread), seconds, seconds * (1 + spread), rounds=7, repetitions=1)
    return results.make_rows(job, 4, {provider: timed})[0]


# --- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        ("forward", 6_422_528),
        ("backward", 9_633_792),
        ("training", 16_056_320),
        ("residual_forward", 9_633_792),
        ("residual_backward", 16_056_320),
        ("residual_training", 25_690_112),
    ],
)
def test_floor_bytes(work: str, expected: int) -> None:
    assert traffic.floor_bytes(work, 256 * 56 * 56, 4) == expected
    assert traffic.floor_bytes(work, 256 * 56 * 56, 2) == expected // 2


def test_rates_and_share_of_clone() -> None:
    job = plan.Job(cases.Case("a.b", 1, 10, 10, 10), "eca", "training", "float32", "contiguous", ("fused", "clone"))
    timings = {"fused": Timing(1e-6, 1e-6, 1e-6, 3, 1), "clone": Timing(2e-7, 2e-7, 2e-7, 3, 1)}
    fused, clone = results.make_rows(job, 4, timings)
    assert (fused.bytes, clone.bytes) == (20_000, 8_000)
    assert (fused.gb_per_s, clone.gb_per_s) == pytest.approx((20, 40))
    assert fused.share_of_clone == pytest.approx(0.5)


# --- cases ---------------------------------------------------------------------------------------------------------


def test_case_names_are_unique() -> None:
    distinct = {case for suite in cases.SUITES.values() for case in suite}
    assert len(cases.all_cases()) == len(distinct)


def seen_shapes(model: nn.Module, watched: list[nn.Module]) -> list[tuple[tuple[int, ...], int]]:
    """Output shapes of ``watched`` for one 224x224 image, with how often each occurs, in order of appearance."""
    shapes: Counter[tuple[int, ...]] = Counter()
    for module in watched:
        module.register_forward_hook(lambda module, args, y: shapes.update([tuple(y.shape)]))
    model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return list(shapes.items())


def test_resnet50_cases_are_the_layers_of_the_real_model() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.resnet50()
    shapes = seen_shapes(model, [module for name, module in model.named_modules() if name.endswith("bn3")])
    assert shapes == [(case.shape, case.count) for case in cases.resnet50(1)]
    assert sum(case.count for case in cases.resnet50(32)) == 16


def test_mobilenetv2_cases_are_the_layers_of_the_real_model() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.mobilenet_v2()
    depthwise = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert seen_shapes(model, depthwise) == [(case.shape, case.count) for case in cases.mobilenetv2(1)]


def test_standard_plan_covers_the_headline_with_all_providers() -> None:
    jobs = plan.standard()
    assert len(set(jobs)) == len(jobs)
    full = {(job.case, job.phase) for job in jobs if len(job.providers) == 5}
    assert full == {(case, phase) for case in cases.SUITES["resnet50"] for phase in plan.PHASES}
    assert {job.variant for job in jobs} == {variant.name for variant in VARIANTS} == set(plan.VARIANTS)


# --- providers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_eager_baseline_computes_the_reference(variant: Any) -> None:
    layer = variant.module(32, dtype=torch.float64)
    eager = EagerECA(layer.conv1) if variant is ECA else EagerReference(variant, layer)
    x = make_x((2, 32, 5, 3), torch.float64)
    torch.testing.assert_close(eager(x), variant.reference(x, *layer.parameters()))
    assert set(eager.parameters()) == set(layer.parameters())


# --- runs ----------------------------------------------------------------------------------------------------------


def test_quick_run_writes_rows_and_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([*TINY_RUN, "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert document.keys() == {"schema_version", "environment", "rows", "models", "findings"}
    assert document["environment"].keys() >= {
        "date",
        "cpu",
        "cores",
        "load",
        "threads",
        "torch",
        "python",
        "os",
        "eca_cuda",
    }
    assert document["environment"]["threads"] == 1
    assert [(row["phase"], row["provider"]) for row in document["rows"]] == [
        (phase, provider) for phase in plan.PHASES for provider in ("eager", "fused", "clone")
    ]
    for row in document["rows"]:
        assert row.keys() == {*results.Row.__dataclass_fields__}
        assert row["case"] == {"name": "tiny.overhead", "n": 1, "c": 8, "h": 4, "w": 4, "count": 1}
        assert 0 < row["timing"]["q20"] <= row["timing"]["q50"] <= row["timing"]["q80"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["timing"]["q50"] / 1e9)
    shown = capsys.readouterr().out
    assert "tiny.overhead" in shown and "vs eager" in shown
    loaded = results.load(out)
    assert len(loaded.rows) == 6 and loaded.rows[0].case == cases.TINY
    assert list(tmp_path.iterdir()) == [out]


def test_without_rich_the_same_is_shown_in_markdown() -> None:
    code = "import sys; sys.modules['rich'] = None; from benchmarks.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *TINY_RUN], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| tiny.overhead | forward |" in done.stdout and "| goal | target | measured | met |" in done.stdout
    assert "2/2 tiny.overhead eca training float32 contiguous" in done.stderr


@pytest.mark.parametrize("phase", plan.PHASES)
@pytest.mark.parametrize(("dtype", "layout"), [("float32", "contiguous"), ("bfloat16", "channels_last")])
@pytest.mark.parametrize("variant", plan.VARIANTS)
def test_every_kind_of_job_runs(variant: str, dtype: str, layout: str, phase: str) -> None:
    job = plan.Job(
        cases.Case("test.small", 2, 32, 5, 5), variant, phase, dtype, layout, ("eager", "fused", "se", "clone")
    )
    rows = run.run_job(job, Budget(warmup=0, sample=1e-6, total=0, min_rounds=2))
    assert [row.provider for row in rows] == list(job.providers)


def test_wrong_result_stops_the_run_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = functional.eca
    monkeypatch.setattr(functional, "eca", lambda *args, **options: right(*args, **options) * 1.001)
    monkeypatch.setattr(timing, "measure", lambda *args: pytest.fail("timed before it was checked"))
    assert main([*TINY_RUN, "--json", str(tmp_path / "out.json"), "--plots", str(tmp_path / "plots")]) == 1
    error = capsys.readouterr().err
    assert "tiny.overhead eca forward" in error and "of its budget" in error
    assert list(tmp_path.iterdir()) == []


# --- command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dtype", "int8"], ["--dtype", "float32", "'int8'"]),
        (["--suite", "vgg"], ["--suite", "resnet50", "'vgg'"]),
        (["--case", "layer9"], ["--case", "--list", "'layer9'"]),
        (["--threads", "0"], ["--threads", "at least 1", "'0'"]),
        (["--threads", "two"], ["--threads", "at least 1", "'two'"]),
        (["--json", "/nowhere/out.json"], ["--json", "writable", "'/nowhere/out.json'"]),
        (["--plots", __file__], ["--plots", "folder", "test_benchmarks.py"]),
        (["--compare", "/nowhere/old.json"], ["--compare", "No such file", "/nowhere/old.json"]),
        (["--compare", __file__], ["--compare", "JSON", "test_benchmarks.py"]),
        (["compare", "/nowhere/old.json", "b.json"], ["OLD.json", "No such file"]),
        (["report"], ["FILE", "required"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("-") or len(value) < 2 else "",
)
def test_wrong_arguments_give_one_clear_line(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert all(part in error for part in expected), error


def test_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cases.all_cases())


# --- what is made of the rows --------------------------------------------------------------------------------------


def test_goals_are_geometric_means_of_speedups() -> None:
    small, large = cases.resnet50(1)[0], cases.resnet50(8)[0]
    rows = [make_row(p, s, case=small) for p, s in (("eager", 4.0), ("compile", 2.0), ("fused", 1.0))]
    rows += [make_row(p, s, case=large) for p, s in (("eager", 9.0), ("compile", 2.0), ("fused", 1.0))]
    found = {goal.what: goal for goal in analysis.goals(rows)}
    assert found["forward, times faster than eager"].measured == pytest.approx(6)
    assert found["forward, times faster than compile"].measured == pytest.approx(2)
    assert found["training, times faster than eager"].met is None
    assert found["cases slower than eager by more than noise"].met is True
    assert all(goal.measured is None for goal in analysis.goals([]))


def test_slower_means_beyond_noise() -> None:
    eager = make_row("eager", 1.0)
    assert not analysis.is_slower({"eager": eager, "fused": make_row("fused", 1.2)})  # 1.08..1.32 meets 0.9..1.1
    assert analysis.is_slower({"eager": eager, "fused": make_row("fused", 1.3)})


def test_compare_shows_slower_rows_first_and_marks_what_is_beyond_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [make_row("eager", 1.0), make_row("fused", 1.0), make_row("clone", 1.0), make_row("se", 1.0)]
    new = [make_row("eager", 1.1), make_row("fused", 2.0), make_row("clone", 0.5)]
    before, after = (results.Results({}, rows) for rows in (old, new))
    table = compare.compare(before, after)
    assert [(row[1], row[4], row[5]) for row in table.rows] == [
        ("fused", "2.00", "slower"),
        ("eager", "1.10", ""),
        ("clone", "0.50", "faster"),
    ]
    assert "3 rows in both runs, 1 in one" in table.title

    for name, which in (("old", before), ("new", after)):
        results.save(which, tmp_path / f"{name}.json")
    assert main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    assert "slower" in capsys.readouterr().out


def test_loading_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"schema_version": 0, "environment": {}, "rows": []}')
    with pytest.raises(ValueError, match=r"old.json: expected schema_version 1, got 0"):
        results.load(path)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(1.5, "1.50 s"), (0.12, "120 ms"), (3.21e-6, "3.21 us"), (9.99e-5, "99.9 us"), (4.5e-8, "45.0 ns")],
)
def test_durations_have_three_digits(seconds: float, expected: str) -> None:
    assert tables.duration(seconds) == expected


# --- README --------------------------------------------------------------------------------------------------------


def some_results() -> results.Results:
    environment = {"cpu": "Test CPU", "threads": 1, "torch": "2.14", "date": "2026-01-02T03:04:05"}
    times = {"eager": 4e-3, "compile": 3e-3, "fused": 2e-3, "clone": 1e-3}
    rows = [make_row(name, seconds, phase=phase) for phase in plan.PHASES for name, seconds in times.items()]
    return results.Results(environment, rows)


def test_goals_are_shown_closely_enough_to_see_whether_they_are_met() -> None:
    measured = {0.9153: "0.915", 0.0153: "0.0153", 107.29: "107", 999.7: "1000", 2.4: "2.4", 1234.5: "1234", 0: "0"}
    goals = [analysis.Goal("a goal", 1, value, unit="") for value in measured]
    assert [line[2] for line in tables.table_of_goals("", goals).rows] == list(measured.values())


def test_report_replaces_its_own_blocks_only() -> None:
    block = "<!-- benchmark:begin {0} -->\nold\n<!-- benchmark:end {0} -->\n"
    text = "top\n" + block.format("cpu.forward") + "middle\n" + block.format("gpu.forward") + "bottom\n"
    new = report.rebuild(text, "cpu", some_results())
    assert "| layer1, 256 x 56 x 56 | 8 | 4.00 ms | 3.00 ms | 2.00 ms | 2.00x | 1.50x |" in new
    assert new.count("old") == 1 and new.endswith("middle\n" + block.format("gpu.forward") + "bottom\n")
    assert report.rebuild(new, "cpu", some_results()) == new
    assert report.block_files(new) == {"cpu", "gpu"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<!-- benchmark:begin cpu.goals -->\n", "expected <!-- benchmark:end cpu.goals -->"),
        ("<!-- benchmark:begin cpu.x -->\n<!-- benchmark:end cpu.x -->", "expected a table of .*goals.*, got 'x'"),
    ],
)
def test_report_refuses_a_broken_block(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        report.rebuild(text, "cpu", some_results())


def test_report_command_writes_tables_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme, path = tmp_path / "README.md", tmp_path / "cpu.json"
    readme.write_text(
        "".join(f"<!-- benchmark:begin cpu.{t} -->\n<!-- benchmark:end cpu.{t} -->\n" for t in tables.README_TABLES)
    )
    results.save(some_results(), path)
    assert main(["report", str(path), "--readme", str(readme)]) == 0
    assert "Test CPU, 1 thread, torch 2.14, 2026-01-02" in readme.read_text()
    pictures = {file.name for file in tmp_path.iterdir() if file.suffix == ".png" and file.stat().st_size > 10_000}
    assert pictures == {"cpu-speedup.png", "cpu-clone.png", "cpu-time.png"}


def test_readme_shows_the_committed_results() -> None:
    files = sorted((ROOT / "benchmarks/results").glob("*.json"))
    for page in (ROOT / "README.md", ROOT / "docs/benchmark.md"):
        text = page.read_text(encoding="utf-8")
        assert report.block_files(text) and report.block_files(text) <= {path.stem for path in files}
        for path in files:
            command = f"run: python -m benchmarks report {path} --readme {page}"
            assert report.rebuild(text, path.stem, results.load(path)) == text, command


# --- the paper's numbers -------------------------------------------------------------------------------------------


def test_complexity_of_eca_resnet50() -> None:
    pytest.importorskip("torchvision")
    from benchmarks import complexity

    found = complexity.measure()
    assert found.backbone_parameters == 25_557_032
    assert found.backbone_macs == 4_089_184_256
    assert (found.eca_parameters, found.eca_parameters_by_formula) == (80, 86)
    assert (found.eca_macs, found.eca_macs_of_square_kernels) == (86_272, 512_768)
    lines = {(row[0], row[2]) for row in complexity.table(found).rows}
    assert {("backbone parameters", "24.37 M"), ("backbone FLOPs", "3.86 G")} <= lines
