# SPDX-License-Identifier: MIT
"""Result files, and the tables and pictures made from them; the pages must show the committed results."""

import json
import math
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cases, plots, report, results, tables, terminal
from benchmarks.cases import Case, Job, resnet50
from benchmarks.cli import PAGES, main
from benchmarks.results import Check, Results, Row
from benchmarks.timing import Timing

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "benchmarks/results"
CPU = {"device": "Test CPU", "threads": 1, "torch": "2.14", "date": "2026-01-02T03:04", "gpu": {}, "dry": False}
GPU = {**CPU, "device": "NVIDIA Test 80GB", "gpu": {"name": "NVIDIA Test 80GB", "driver": "1.2"}, "sources": "before"}
LAYER1 = resnet50(256)[0]
TIMES = {"eager": 3.8e-3, "compile": 3e-3, "fused": 2e-3, "clone": 1.9e-3}


def rows_of(times: dict[str, float], case: Case = LAYER1, phase: str = "forward", **changes: Any) -> list[Row]:
    """Rows of one job; each quantile is 10 % from the median."""
    spread, variant = changes.pop("spread", 0.1), changes.pop("variant", "eca")
    job = Job(case, variant, phase, changes.pop("dtype", "float16"), changes.pop("layout", "contiguous"), ())
    made = {name: Timing(round(s * (1 - spread), 9), s, round(s * (1 + spread), 9), 7) for name, s in times.items()}
    return [replace(results.make_row(job, name, timing), **changes) for name, timing in made.items()]


def network_rows(how: str, spread: float = 0.01, layout: str = "channels_last", **seconds: float) -> list[Row]:
    case, changes = Case("resnet50", 8, 3, 224, 224), {"variant": how, "layout": layout, "peak_bytes": 10**9}
    return [r for phase in cases.PHASES for r in rows_of(seconds, case, phase, spread=spread, **changes)]


def of_gpu() -> Results:
    """A few rows of every kind."""
    eager = {"plain": 1.0, "eager": 1.1, "converted": 1.05, "residual": 1.02}
    rows = [r for phase in cases.PHASES for r in rows_of(TIMES, phase=phase)]
    rows += rows_of({"fused": 3e-3, "clone": 1.9e-3}, phase="backward") + rows_of(TIMES, resnet50(256)[3])
    rows += network_rows("eager", **eager) + network_rows("eager", layout="contiguous", plain=2.0, eager=1.09)
    rows += network_rows("compiled", plain=1.0, eager=1.2, residual=1.01)
    rows += rows_of({"own 16/1/512": 3e-3, "clone": 2e-3, "-1/0/0": 2.4e-3, "8/1/256": 3.2e-3}, variant="eca plans")
    rows += rows_of({"1/1/128": 2e-3}, variant="eca plans", rounds=1)  # timed once only
    rows += rows_of({"eca_backward_kernel": 1e-4, "other": 2e-6}, phase="backward", variant="eca kernels")
    return Results(GPU, rows, [Check("tests cuda", "failed", "a|b\n[31m] 1 | 2", 9.4), Check("ncu k", "done", "")])


@pytest.mark.parametrize(("phase", "maps"), list(zip(cases.ALL_PHASES, (2, 5, 3, 3, 7, 4), strict=True)))
def test_bytes_rates_and_shares(phase: str, maps: int) -> None:
    fused, clone = rows_of({"fused": 2e-6, "clone": 1e-6}, Case("a.b", 1, 10, 10, 10), phase, dtype="float32")
    assert (fused.map_bytes, fused.bytes, clone.bytes) == (4000, 4000 * maps, 8000)
    assert (fused.gb_per_s, clone.gb_per_s) == pytest.approx((2 * maps, 8))
    assert tables.share({"fused": fused, "clone": clone}) == pytest.approx(maps / 4)


def test_files_hold_what_was_added_in_few_digits(tmp_path: Path) -> None:
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    grown = results.begin(path, GPU)
    precise = replace(rows_of({"fused": 1 / 3})[0], launched=2 / 3, peak_bytes=123_456_789)
    grown.add(precise, Check("what", "failed"), Check("what", "done", "note", 1.5))  # the last of one name counts
    loaded = results.load(path)
    assert (loaded.environment, loaded.checks) == (GPU, grown.checks) and grown.checks[-1].status == "done"
    assert loaded.rows == [replace(precise, q20=0.3, q50=0.33333, q80=0.36667, launched=0.66667)]
    assert path.read_text().splitlines()[1].endswith('"fused", 0.3, 0.33333, 0.36667, 7, 0.66667, null, 123456789]')
    results.write(other, loaded)
    assert results.load(other) == loaded and sorted(tmp_path.iterdir()) == [path, other]
    assert results.begin(None, GPU) == Results(GPU)


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    path, job = tmp_path / "a.jsonl", Job(LAYER1, "eca", "forward", "float16", "contiguous", ("clone", "fused"))
    first, second = rows_of({"fused": 1.0, "clone": 1.0})
    results.begin(path, GPU).add(first)
    path.write_text(path.read_text() + '["resnet50.layer1.n256", [2')
    again = results.begin(path, {**GPU, "date": "later"})
    assert again.rows == [first] and not again.has(job)
    again.add(second)
    assert results.load(path).rows == [first, second] and again.has(job)


@pytest.mark.parametrize("key", ["sources", "device", "torch", "dry", "threads"])
def test_a_run_in_another_environment_does_not_continue_a_file(key: str, tmp_path: Path) -> None:
    results.begin(tmp_path / "a.jsonl", GPU)
    with pytest.raises(ValueError, match=rf"a.jsonl: expected results with {key} other, got {GPU[key]}"):
        results.begin(tmp_path / "a.jsonl", {**GPU, key: "other"})


HEADER = '{"schema": 2, "environment": {}, "columns": ["shape"]}\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ('{"schema": 1}', 1),
        ("", 1),
        ("# text", 1),
        ('["list"]', 1),
        ("[" * 99999, 1),
        ("\xff", 1),
        ('{"schema": 2, "environment": 1, "columns": []}', 1),
        ('{"schema": 2, "environment": {}, "columns": 1}', 1),
        (HEADER + '["cut\n[1]', 2),
        (HEADER + "[1]", 2),
        (HEADER + '[[1]]\n{"check": 1}\n', 2),
        (HEADER + '{"check": "a", "status": null}', 2),
        (HEADER + '{"check": "a", "status": "done", "seconds": Infinity}', 2),
        (HEADER + '{"check": "a", "status": "done"}\n7\n', 3),
    ],
    ids=range(14),
)
def test_an_invalid_file_is_refused(text: str, number: int, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(text, encoding="latin-1")
    expected = f"a.jsonl, line {number}: expected a line of python -m benchmarks, got"
    with pytest.raises(ValueError, match=expected):
        results.load(tmp_path / "a.jsonl")


@pytest.mark.parametrize("value", [None, -1, "x", [], math.inf], ids=repr)
@pytest.mark.parametrize("column", results.COLUMNS)
def test_every_command_names_a_file_with_an_impossible_value(
    column: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, page = tmp_path / "good.jsonl", tmp_path / "bad.jsonl", tmp_path / "page.md"
    results.write(good, of_gpu())
    header, *lines = good.read_text().splitlines()
    place, line = results.COLUMNS.index(column), json.loads(lines[0])
    line += [None] * (len(results.COLUMNS) - len(line))
    bad.write_text("\n".join([header, json.dumps([*line[:place], value, *line[place + 1 :]]), *lines[1:]]) + "\n")
    page.write_text("".join(BLOCK.format(f"bad.{table}") for table in tables.BY_NAME) + "results/bad-share-light.svg")
    shown = ["--results", str(tmp_path), "--pages", str(page)]
    for command in (["compare", str(bad), str(good)], ["report", *shown], ["report", "--add", str(bad), *shown]):
        with suppress(SystemExit):
            assert main(command) == 0  # a possible value
            continue
        assert "bad.jsonl" in capsys.readouterr().err.splitlines()[-1]


def test_rows_measured_together_are_a_group_and_the_run_with_more_providers_counts() -> None:
    few, many, other = {"eager": 1.0, "fused": 2.0}, {"compile": 3.0, "eager": 4.0, "fused": 5.0}, {"fused": 6.0}
    two, three, one = rows_of(few), rows_of(many), rows_of(other, phase="training")
    for rows in (two + one + three, three + one + two, three + two + one, two + two + one + three):
        assert {tuple(row.q50 for row in group.values()) for group in tables.groups(rows)} == {(3, 4, 5), (6,)}


def test_goals_of_a_cpu_and_of_a_gpu_and_slower_means_beyond_noise() -> None:
    rows = rows_of({"eager": 4.0, "compile": 2.0, "fused": 1.0}, resnet50(1)[0], dtype="float32")
    rows += rows_of({"eager": 9.0, "compile": 2.0, "fused": 1.0, "clone": 0.9}, resnet50(32)[0], dtype="float32")
    rows += rows_of({"function": 2e-6}, cases.TINY, dtype="float32")
    found = [goal.measured for goal in tables.goals(Results(CPU, rows))]
    assert found == pytest.approx([6, 2, None, None, 0.9, 0, 2, None])
    rows = [*of_gpu().rows, *rows_of({"fused": 9.0, "clone": 1.0}, resnet50(1)[0])]
    found = tables.goals(Results(GPU, rows))
    assert [goal.measured for goal in found] == pytest.approx([0.95, 0.95, 1.5, 1.5, 0.01])
    assert [goal.met for goal in found] == [True] * 5 and tables.Goal("", 2.0, 1.9).met is False
    assert all(goal.met is None for environment in (CPU, GPU) for goal in tables.goals(Results(environment)))
    eager, near, far = rows_of({"eager": 1.0, "near": 1.2, "far": 1.3})
    assert not tables.is_slower({"eager": eager, "fused": near})  # 1.08..1.32 meets 0.9..1.1
    assert tables.is_slower({"eager": eager, "fused": far}) and not tables.is_slower({"fused": far})


def test_compare_shows_slower_rows_first_and_marks_what_is_beyond_noise(tmp_path: Path, capsys) -> None:
    old = Results(CPU, rows_of({"eager": 1.0, "fused": 1.0, "clone": 1.0, "function": 1.0}))
    new = Results(CPU, rows_of({"eager": 1.1, "fused": 2.0, "clone": 0.5}))
    expected = [("fused", "2.00", "slower"), ("eager", "1.10", ""), ("clone", "0.50", "faster")]
    assert [(row[1], row[4], row[5]) for row in tables.compare(old, new).rows] == expected
    paths = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for path, which in zip(paths, (old, new), strict=True):
        results.write(path, which)
    assert main(["compare", *map(str, paths)]) == 0
    assert "3 rows in both runs, 1 in one of them only" in capsys.readouterr().out


SHOWN = """layers | layer1, 256 x 56 x 56 | 256 | eca forward float16 contiguous | 3.80 ms | 3.00 ms | 2.00 ms |
layers | 2.00 ms | 1.90 ms | 95% | 1.90x | 1.50x |
shares | float16 contiguous, forward | 95% 95% | 63% 63% | 50% 50% |
shares | float16 contiguous, backward | 95% |  |  |
overview | resnet50 | eca | float16 | contiguous | 1.90x | 1.90x |
plans | forward float16 contiguous | 16/1/512 67% | two-phase 83% | 8/1/256 62% |  | 1.25x |
kernels | backward float16 contiguous | eca_backward_kernel 100 us, other 2.00 us |
checks | tests cuda | failed | 9 s | [31m] 1 / 2 |
goals | forward, least share of a copy's rate from 50 MB on | >= 0.92 | 0.95 | yes |
networks | eager forward, batch 8 | ResNet-50 | 8.0 |  | 2% | 1000 MB | channels_last |
networks | eager forward, batch 8 | with ECA | 7.3 | +9.0% | 2% | 1000 MB | contiguous |
headline ECA adds +9.0% to the inference time of a ResNet-50 in eager mode, +5.0% after `convert(model)`"""


@pytest.mark.parametrize("line", SHOWN.splitlines())
def test_tables_show_what_was_measured(line: str) -> None:
    table, _, expected = line.partition(" ")
    assert expected in tables.BY_NAME[table](of_gpu())


def test_durations_noise_and_gaps_are_shown_and_the_terminal_folds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    costs = {"plain": 1.0, "eager": 1.1, "converted": 1.05, "residual": 1.02}
    quiet, noisy = (tables.headline_sentence(Results(CPU, network_rows("eager", n, **costs))) for n in (0.0, 0.2))
    assert quiet.endswith("medians).") and noisy.endswith("; on this machine single calls vary by more than that).")
    durations = {1.5: "1.50 s", 0.12: "120 ms", 3.21e-6: "3.21 us", 9.99e-5: "99.9 us", 4.5e-8: "45.0 ns"}
    assert {seconds: tables.duration(seconds) for seconds in durations} == durations
    nothing = Results(CPU)
    assert tables.headline_sentence(nothing) == "No network was measured." and tables.for_terminal(nothing) == []
    terminal.show(*tables.for_terminal(of_gpu()))
    shown = capsys.readouterr().out
    assert "…" not in shown and shown.index("[31m] 1 / 2") < shown.index("kernel 100 us, other") < shown.index("Goals")


BLOCK = "<!-- benchmark:begin {0} -->\nold\n<!-- benchmark:end {0} -->\n"


def test_report_replaces_what_is_between_the_markers_and_refuses_broken_ones(tmp_path: Path) -> None:
    results.write(tmp_path / "a-b.jsonl", of_gpu())
    long = BLOCK.format("a-b.environment").replace("old", "old" * 99)
    new = report.rebuild(f"old\n{long}old\n{BLOCK.format('a-b.goals')}old", tmp_path)
    assert new.count("old") == 3 and "\n| goal | target |" in new and "begin a-b.environment -->\nNVIDIA Test" in new
    assert report.rebuild(new, tmp_path) == new
    with pytest.raises(
        ValueError, match=r"begin a-b.goals: expected <!-- benchmark:end a-b.goals --> after it, got none"
    ):
        report.rebuild("<!-- benchmark:begin a-b.goals -->\n", tmp_path)
    with pytest.raises(ValueError, match=r"expected one of .*goals.*, got 'x'"):
        report.rebuild(BLOCK.format("a-b.x"), tmp_path)


def test_one_table_is_of_several_files(tmp_path: Path) -> None:
    """A device is named once, with its commit if it has one; peers that nobody measured have no column."""
    layers = rows_of({"eager": 4e-3, "compile": 3e-3, "fused": 2e-3, "clone": 1e-3}, resnet50(1)[0], dtype="float32")
    block = rows_of({"eager": 3e-3, "fused": 1e-3}, LAYER1, "residual_training", variant=cases.BLOCK, dtype="float32")
    results.write(tmp_path / "cpu.jsonl", Results(CPU, [*layers, *block]))
    results.write(tmp_path / "gpu.jsonl", replace(of_gpu(), environment={**GPU, "commit": "abc1234"}))
    results.write(tmp_path / "other.jsonl", Results(GPU, rows_of({"triton": 3e-3, "fused": 2e-3, "clone": 1e-3})))
    text = report.rebuild(BLOCK.format("cpu+gpu.speed"), tmp_path)
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| device | what | maps | vs eager | vs compile | of a copy's rate |",
        "| :-- | :-- | :-- | --: | --: | --: |",
        "| CPU, 1 thread | ECA, inference | float32, contiguous, batch 1 | 2.00x | 1.50x | 50% to 50% |",
        "|  | batch norm, ECA, `+ x`, ReLU, training | float32, contiguous, batch 256 | 3.00x |  |  |",
        "| Test, kernels of abc1234 | ECA, inference | float16, contiguous, batch 256 | 1.90x | 1.50x | 95% to 95% |",
        "|  | ECA, training | float16, contiguous, batch 256 | 1.90x | 1.50x | 237% to 237% |",
        "|  | ResNet-50, inference: ECA adds +9.0%, converted +2.0% | float16, batch 8 | 1.07x |  |  |",
        "|  | ResNet-50, training: ECA adds +9.0%, converted +2.0% | float16, batch 8 | 1.07x |  |  |",
    ]
    shown = report.rebuild(BLOCK.format("other.speed"), tmp_path)
    assert "| Test | ECA, inference | float16, contiguous, batch 256 | 1.50x | 50% to 50% |" in shown
    with pytest.raises(ValueError, match=r"a\.jsonl or .*gpu\.jsonl: expected"):
        (tmp_path / "a.jsonl").write_text((tmp_path / "cpu.jsonl").read_text())
        report.rebuild(BLOCK.format("a+gpu.goals"), tmp_path)


def test_results_of_a_gpu_are_added_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, new, folder, stem = tmp_path / "page.md", tmp_path / "new.jsonl", tmp_path / "kept", "test-2026-01-02"
    folder.mkdir()
    page.write_text(BLOCK.format(f"{stem}.networks") + f"results/{stem}-share-light.svg results/{stem}-cost-dark.svg")
    results.write(new, replace(of_gpu(), environment={**GPU, "sources": results.sources()}))
    command = ["report", "--add", str(new), "--results", str(folder), "--pages", str(page)]
    assert main(command) == 0
    names = {f"{stem}-{name}-{mode}.svg" for name in ("share", "cost") for mode in ("light", "dark")}
    assert {path.name for path in folder.iterdir()} == {f"{stem}.jsonl", *names}
    kept = results.load(folder / f"{stem}.jsonl")
    assert kept.rows == of_gpu().rows and re.fullmatch("[0-9a-f]*", kept.environment["commit"])
    assert "+9.0%" in page.read_text() and "old" not in page.read_text()
    for environment in (CPU, {**GPU, "dry": True}):
        results.write(new, Results(environment))
        with pytest.raises(SystemExit):
            main(command)
        assert "new.jsonl: expected results of a GPU, got results of a dry run" in capsys.readouterr().err


def test_pictures_are_drawn_for_the_available_results_in_two_modes(tmp_path: Path) -> None:
    made = plots.save_all(of_gpu(), tmp_path, "gpu")
    kinds = [f"gpu-{name}-{mode}.svg" for name in ("share", "time", "cost") for mode in plots.INK]
    assert [path.name for path in made] == kinds
    light, dark = (path.read_text() for path in made[:2])
    assert plots.INK["light"] in light and plots.INK["light"] not in dark and plots.INK["dark"] in dark
    bars = [len(re.findall(f"fill: {plots.COLORS[name]}", light)) for name in ("eager", "compile", "fused")]
    assert bars == [3 + 1, 3 + 1, 4 + 1]  # two layers, one layer, one more of fused; plus the legend
    assert "layer4" in light and "NVIDIA Test 80GB, driver 1.2" in light and ">95<" in light
    assert all(f">{value} %<" in made[4].read_text() for value in ("+9.0", "+5.0", "+2.0", "+20.0", "+1.0"))
    assert plots.save_all(Results(CPU, rows_of({"fused": 1.0})), tmp_path, "cpu") == []


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_show_the_committed_results_and_pictures(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- benchmark:begin " in text
    assert report.rebuild(text, COMMITTED) == text, "run: python -m benchmarks report"
    named = [f"{stem}-{name}-{mode}.svg" for stem, name in report.pictures(text) for mode in plots.INK]
    assert [name for name in named if not (COMMITTED / name).exists()] == []
    assert bool(named) == (page in ("docs/benchmark.md", "docs/gpu.md"))


def test_committed_results_are_complete_and_not_from_a_dry_run() -> None:
    for path in (files := sorted(COMMITTED.glob("*.jsonl"))):
        found = results.load(path)
        assert len(found.rows) + len(found.checks) == len(path.read_text().splitlines()) - 1, path
        assert found.rows and not found.environment.get("dry") and tables.for_terminal(found), path
    assert {"cpu", "cpu-networks"} <= {path.stem for path in files}
