# SPDX-License-Identifier: MIT
"""The committed predictions are those of the built plan, of every case, and their arithmetic is that of the traffic."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import predictions
from benchmarks.cases import Case
from benchmarks.predictions import CASES, Prediction, predict
from benchmarks.traffic import floor_bytes
from eca_cuda._ext import _C

TRAFFIC = {"forward": "forward", "backward": "backward", "forward, residual and relu": "residual_forward"}


@pytest.fixture(scope="module")
def found() -> list[Prediction]:
    return predictions.all_predictions()


def test_committed_predictions_are_those_of_the_built_plan(found: list[Prediction]) -> None:
    advice = "run: python -m benchmarks predictions"
    assert predictions.FILE.read_text() == predictions.to_json(found), advice
    assert predictions.PAGE.read_text().endswith(predictions.to_markdown(found)), advice


def test_every_case_is_there_once(found: list[Prediction]) -> None:
    committed = json.loads(predictions.FILE.read_text())
    calls = {tuple(row[:5]) for row in committed["rows"]}
    assert len(calls) == len(committed["rows"]) == 2 * 14 * 3 * 3 * 2 * 8
    shapes = {name.rsplit(".", 1)[0] for _, name, *_ in calls}
    assert len(shapes) == 14
    wanted = itertools.product(("h100", "h200"), shapes, (1, 32, 256))
    assert {(device, case) for device, case, *_ in calls} == {(d, f"{shape}.n{n}") for d, shape, n in wanted}


@pytest.mark.parametrize("work", TRAFFIC)
def test_floors_are_those_of_the_traffic(work: str, found: list[Prediction]) -> None:
    elements = {case.name: case.elements for case in CASES}
    rates = {device["name"]: device["copy_rate"] for device in _C.devices()}
    for p in (p for p in found if p.work == work):
        moved = floor_bytes(TRAFFIC[work], elements[p.case], 4 if p.dtype == "float32" else 2)
        assert p.floor_bytes == moved
        assert p.floor_us == pytest.approx(moved / rates[p.device] * 1e6, abs=0.005)
        assert p.floor_us < p.us


@pytest.mark.parametrize(
    ("n", "clusters", "ranks", "stages", "us", "gap"),
    [
        (1, 1, 16, 1, 12.0, "4.0 us latency; 3.0 us: 16 of 100 multiprocessors busy, exchange in clusters"),
        (64, 64, 1, 1, 9.0, "4.0 us latency"),
        (100, 50, 2, 1, 10.0, "4.0 us latency; 1.0 us: exchange in clusters, 2 rounds with one slab"),
        (151, 50, 1, 2, 9.5, "4.0 us latency; 0.5 us: 4 rounds, 1 multiprocessors busy in the last"),
    ],
)
def test_the_gap_says_why(n: int, clusters: int, ranks: int, stages: int, us: float, gap: str) -> None:
    device = {"multiprocessors": 100, "copy_rate": 40 * predictions.RATE_PER_MULTIPROCESSOR}
    plan = {"clusters": clusters, "ranks": ranks, "stages": stages, "kept_rows": 0, "floor_us": 5.0, "predicted_us": us}
    assert predictions.gap_of(plan, n, device, latency=4.0) == gap


def test_what_does_not_fit_is_two_phase() -> None:
    large = predict("h100", Case("", 2, 4096, 112, 112), "float16", "contiguous", "forward")
    assert large.plan.startswith("two-phase") and "does not fit" in large.gap


def test_the_rate_of_a_multiprocessor_is_the_plans() -> None:
    source = Path(__file__).parent.parent / "csrc/plan/resident.cpp"
    if not source.exists():
        pytest.skip("needs the source tree")
    assert f"kRatePerMultiprocessor = {predictions.RATE_PER_MULTIPROCESSOR / 1e9:.0f}e9" in source.read_text()
