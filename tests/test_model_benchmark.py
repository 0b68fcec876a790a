# SPDX-License-Identifier: MIT
"""``python -m benchmarks models``: five networks, checked, timed against each other, shown as they were measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("rich")

from benchmarks import models, report, results, tables
from benchmarks.cli import main
from benchmarks.timing import Timing

NAMES = ["plain", "se", "eager", "converted", "residual"]


def test_the_quick_run_measures_every_network_in_both_phases(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu-models.json"
    assert main(["models", "--quick", "--json", str(path)]) == 0
    found = results.load(path)
    assert [(row.name, row.phase) for row in found.models] == [
        (name, phase) for phase in ("forward", "training") for name in NAMES
    ]
    assert all(row.timing.q50 > 0 and row.peak_bytes > 1e6 for row in found.models)
    peak = {(row.name, row.phase): row.peak_bytes for row in found.models}
    assert peak["plain", "training"] > peak["plain", "forward"]
    assert peak["residual", "training"] <= peak["eager", "training"]
    assert "with ECA, `convert(model, fuse_residual=True)`" in capfd.readouterr().out


def test_a_wrong_network_stops_the_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(model: nn.Module, **options: bool) -> nn.Module:
        with torch.no_grad():
            model.fc.bias += 1
        return model

    monkeypatch.setattr(models, "convert", wrong)
    assert main(["models", "--quick"]) == 1
    assert "of its budget" in capsys.readouterr().err


def test_networks_differ_in_their_attention_alone() -> None:
    made = models.make_models(models.QUICK_SETTING)
    assert list(made) == NAMES
    keys = {name: set(model.state_dict()) for name, model in made.items()}
    assert keys["eager"] == keys["converted"] == keys["residual"]
    assert {key.partition(".se.")[2] for key in keys["eager"] - keys["plain"]} == {"conv.weight"}


def test_peak_is_what_is_held_at_once() -> None:
    def call() -> None:
        first = torch.empty(1_000_000)
        del first
        torch.empty(500_000), torch.empty(750_000)

    assert models.peak_bytes(call) == pytest.approx(5_000_000, rel=0.01)


def some_models() -> results.Results:
    seconds = dict(zip(NAMES, (1.0, 1.2, 1.1, 1.05, 1.02), strict=True))
    rows = [
        results.ModelRow(name, phase, 8, 224, Timing(s * 0.9, s, s * 1.1, 7, 1), 10**9)
        for phase in ("forward", "training")
        for name, s in seconds.items()
    ]
    return results.Results({}, [], rows)


def test_table_and_headline_show_the_cost_of_attention() -> None:
    block = "<!-- benchmark:begin cpu-models.{0} -->\n<!-- benchmark:end cpu-models.{0} -->\n"
    text = report.rebuild(block.format("models") + block.format("headline"), "cpu-models", some_models())
    assert "| with ECA, eager | 7.3 | +10.0% | 1.10 s | +10.0% | 20% | 1000 MB |" in text
    assert "+5.0% after `convert(model)` and +2.0% with `fuse_residual=True`" in text
    assert "medians; on this machine single calls vary by more than that)" in text
    quiet = [
        replace(row, timing=replace(row.timing, q20=row.timing.q50, q80=row.timing.q50)) for row in some_models().models
    ]
    assert "medians)." in tables.headline_sentence(results.Results({}, [], quiet))
    assert tables.headline_sentence(results.Results({}, [])) == "No network was measured."
