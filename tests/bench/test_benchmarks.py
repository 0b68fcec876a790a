# SPDX-License-Identifier: MIT
"""Cases, providers and runs: wrong results are not timed, finished jobs are not repeated."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

pytest.importorskip("timm")

from benchmarks import block, cases, correctness, networks, providers, results, run, tables
from benchmarks.cases import Case, Job
from benchmarks.cli import main
from benchmarks.clock import DRY, Cpu
from benchmarks.providers import EagerECA, make_layers, make_module
from benchmarks.results import Check
from benchmarks.run import make_call, make_sets
from eca_cuda import functional
from eca_cuda.testing import ECA, VARIANTS
from eca_cuda.variants import eca as file_of_eca

SMALL = Case("resnet50.layer4.n3", 3, 16, 6, 8)
TINY_RUN = ["--suite", "tiny", "--quick", "--threads", "1", "--provider", "eager", "fused", "clone"]


def job(phase: str = "forward", *names: str, variant: str = "eca", dtype: str = "float32", layout="contiguous") -> Job:
    return Job(SMALL, variant, phase, dtype, layout, names or ("eager", "fused", "clone"))


@pytest.mark.parametrize(("name", "batch", "blocks"), [("resnet50", 32, 16), ("mobilenetv2", 256, 17)])
def test_cases_are_the_layers_of_the_real_model(name: str, batch: int, blocks: int) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = {"resnet50": models.resnet50, "mobilenetv2": models.mobilenet_v2}[name]().eval()
    depthwise = [module for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    seen: Counter[tuple[int, ...]] = Counter()  # shapes, in order of appearance
    for module in depthwise or [module for path, module in model.named_modules() if path.endswith("bn3")]:
        module.register_forward_hook(lambda module, args, y: seen.update([tuple(y.shape)]))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    make = getattr(cases, name)
    assert list(seen.items()) == [(case.shape, case.count) for case in make(1)]
    assert sum(case.count for case in make(batch)) == blocks and {case.n for case in make(batch)} == {batch}


def test_plans_have_each_job_once_and_the_headline_with_all_providers() -> None:
    jobs = cases.standard()
    full = {(job.case, job.phase) for job in jobs if len(job.providers) == 4}
    assert full == {(case, phase) for case in cases.SUITES["resnet50"] for phase in cases.PHASES}
    assert {job.variant for job in jobs} == {variant.name for variant in VARIANTS} == set(cases.VARIANTS)
    for plan in (jobs, cases.quick(), cases.for_gpu(), cases.compiled()):
        assert len({str(job) for job in plan}) == len(plan)
        assert all({"fused", "clone"} <= set(job.providers) or job.case == cases.TINY for job in plan)
    for plan in (cases.for_gpu(), cases.compiled()):
        assert {(job.case, job.dtype) for job in plan[:16]} >= {(case, "float16") for case in cases.resnet50(256)}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """Records calls of torch.compile and returns the layer uncompiled."""
    made: list[tuple[str, object]] = []

    def compile(layer: nn.Module, *, dynamic: bool, fullgraph: bool = True, mode: str | None = None) -> nn.Module:
        made.append((type(layer).__name__, mode))
        assert fullgraph and not dynamic
        return layer

    monkeypatch.setattr(torch, "compile", compile)
    return made


@pytest.mark.parametrize("phase", cases.ALL_PHASES)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_providers_compute_the_reference(variant: Any, phase: str, compiled: list[Any]) -> None:
    names = ["eager", "compile", "compile-timm", "autotune", "fused", "function"]
    wanted = job(phase, *names[: 5 if phase.startswith("residual") else 6])
    module, maps = make_module(wanted, variant, "cpu"), make_sets(wanted, Cpu())[0]
    leaves = [x.detach().requires_grad_() for x in maps.inputs]
    options = {"residual": leaves[1], "activation": "relu"} if wanted.has_residual else {}
    y = variant.reference(leaves[0], *module.parameters(), **options)
    grads = torch.autograd.grad(y, [*leaves, *module.parameters()], maps.grad_y)
    with torch.set_grad_enabled(wanted.differentiates):
        for layer in make_layers(wanted, variant, module).values():
            seen = replace(layer, call=Mock(side_effect=layer.call))
            call = make_call(wanted, seen, maps)
            _, result = call(), call()  # twice, as calls are repeated
            assert seen.call.call_count == (1 if phase.endswith("backward") else 2)
            torch.testing.assert_close(result, grads if wanted.differentiates else y.detach())
    authors, timms = ("EagerECA", "TimmECA") if variant is ECA else ("EagerReference",) * 2
    kinds = ["_WithResidual"] * 3 if wanted.has_residual else [authors, timms, authors]
    assert compiled == list(zip(kinds, (None, None, "max-autotune-no-cudagraphs"), strict=True))


@pytest.mark.parametrize(("dtype", "layout"), [("float32", "contiguous"), ("bfloat16", "channels_last")])
@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_every_kind_of_job_has_a_row_for_each_provider(variant: str, dtype: str, layout: str) -> None:
    for phase in cases.ALL_PHASES:
        wanted = job(phase, variant=variant, dtype=dtype, layout=layout)
        rows = run.run_job(wanted, Cpu(DRY))
        assert [row.provider for row in rows] == list(wanted.providers)
        assert {row.job for row in rows} == {("resnet50.layer4.n3", SMALL.shape, variant, phase, dtype, layout)}
        assert all(0 < row.q20 <= row.q50 <= row.q80 and row.rounds == 2 for row in rows)
    maps = [x for of in make_sets(wanted, Cpu(DRY)) for x in (*of.inputs, of.grad_y)]  # separate memory
    assert len({x.data_ptr() for x in maps}) == 48 and {x.is_contiguous() for x in maps} == {layout == "contiguous"}


def test_a_wrong_result_is_not_timed_and_the_next_job_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found, timed, time, right = results.Results({}), [], Cpu.time, file_of_eca.eca
    monkeypatch.setattr(file_of_eca, "eca", lambda *args, **options: right(*args, **options) * 1.001)
    monkeypatch.setattr(Cpu, "time", lambda self, captured, *more: timed.append(1) or time(self, captured, *more))
    run.run([job(), job(variant="bidirectional_eca")], Cpu(DRY), found)
    assert {row.variant for row in found.rows} == {"bidirectional_eca"} and timed == [1]
    (check,) = found.checks
    assert (check.check, check.status) == (str(job()), "failed") and "of its budget" in check.note
    assert main([*TINY_RUN, "--pass", "forward"]) == 1


@pytest.mark.parametrize("phase", ["forward", "training", "residual_training"])
@pytest.mark.parametrize("sample", range(3))
def test_one_wrong_sample_of_the_batch_is_noticed(phase: str, sample: int) -> None:
    wanted = job(phase, "fused")
    layer = make_layers(wanted, ECA, make_module(wanted, ECA, "cpu"))["fused"]
    maps, factor = make_sets(wanted, Cpu())[0], torch.ones(3, 1, 1, 1)
    correctness.check_batch(wanted, ECA, layer, maps)
    factor[sample] = 1.001
    with pytest.raises(AssertionError, match=r"y in its batch.*of its budget"):
        correctness.check_batch(wanted, ECA, replace(layer, call=lambda *inputs: layer.call(*inputs) * factor), maps)


@pytest.mark.parametrize("name", providers.OURS)
def test_only_other_providers_may_refuse_and_a_lost_device_ends_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, jobs = results.Results({}), [job("forward", name), job("training", name), job("backward", name)]
    monkeypatch.setattr(Cpu, "capture", Mock(side_effect=RuntimeError("not permitted when stream is capturing")))
    run.run(jobs[:2], Cpu(DRY), found)
    monkeypatch.setattr(Cpu, "check", Mock(side_effect=ZeroDivisionError("lost")))
    with pytest.raises(ZeroDivisionError, match="lost"):
        run.run([jobs[2], job()], Cpu(DRY), found)
    note = "RuntimeError: not permitted when stream is capturing"
    assert found.checks == [Check(str(job), "failed", note) for job in jobs] and not found.rows
    run.run([job(), job("training")], Cpu(DRY), found, deadline=0)
    assert found.checks.pop() == Check("layers not begun", "out of time", f"from {job()} on")
    monkeypatch.undo()
    monkeypatch.setattr(EagerECA, "forward", lambda self, x: 1 / 0)
    run.run([job("forward", "eager", name, "clone")], Cpu(DRY), found)
    assert [row.provider for row in found.rows] == [name, "clone"]
    assert found.checks[3:] == [Check(f"{job()}: eager", "refused", "ZeroDivisionError: division by zero")]


def test_a_quick_run_writes_rows_as_they_are_measured_and_continues_the_file(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    path, on_disk, measured = tmp_path / "out.jsonl", [], run.run_job
    monkeypatch.setattr(run, "run_job", lambda *args: on_disk.append(len(results.load(path).rows)) or measured(*args))
    assert main([*TINY_RUN, "--json", str(path)]) == 0
    assert on_disk == [0, 3] and list(tmp_path.iterdir()) == [path]
    loaded = results.load(path)
    expected = list(itertools.product(cases.PHASES, ("eager", "fused", "clone")))
    assert [(row.phase, row.provider) for row in loaded.rows] == expected and loaded.rows[0].case == "tiny.overhead"
    assert loaded.environment["threads"] == 1 and loaded.environment["sources"] == results.sources()
    shown = capsys.readouterr().out
    assert main(["--list"]) == 0
    assert not set(cases.all_cases()) - set(capsys.readouterr().out.split())
    assert "One call on [1, 8, 4, 4]" in shown and "vs eager" in shown and "load before the run" in shown
    assert main([*TINY_RUN, "--json", str(path)]) == 0
    assert main([*TINY_RUN, "--json", str(path), "--pass", "backward", "training"]) == 0
    assert on_disk == [0, 3, 6] and results.load(path).rows[:6] == loaded.rows


WRONG = """--dtype int8: argument --dtype: invalid choice: 'int8'
--case layer9: argument --case: expected a part of a case name in resnet50
--threads 0: argument --threads: expected a whole number of at least 1, got '0'
--suite tiny --json /nowhere/out.jsonl: No such file or directory: '/nowhere/out.jsonl
--suite tiny --json setup.py: setup.py, line 1: expected a line of python -m benchmarks
compare /nowhere/old.jsonl b.jsonl: No such file or directory: '/nowhere/old.jsonl'
compare a.jsonl: the following arguments are required: NEW.jsonl
gpu --step nothing: argument --step: invalid choice: 'nothing'"""


@pytest.mark.parametrize("line", WRONG.splitlines())
def test_wrong_arguments_give_one_clear_line(line: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, _, expected = line.partition(": ")
    monkeypatch.chdir(results.ROOT)
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and expected in error


def test_the_quick_networks_are_measured_in_both_phases_with_their_peaks(tmp_path: Path, capsys) -> None:
    path = tmp_path / "networks.jsonl"
    assert main(["networks", "--quick", "--json", str(path)]) == 0
    peaks = {(row.phase, row.provider): row.peak_bytes for row in results.load(path).rows if row.q50 > 0}
    assert list(peaks) == list(itertools.product(cases.PHASES, ("plain", "eager", "residual")))
    assert min(peaks.values()) > 1e6 and peaks["forward", "residual"] <= peaks["forward", "eager"]
    assert cases.NETWORKS["residual"] in capsys.readouterr().out


def test_a_wrong_network_stops_the_run_and_an_uncompiled_one_is_noticed(compiled, monkeypatch) -> None:
    found = results.Results({})
    networks.measure(networks.settings("cpu", ["compiled"], dry=True), Cpu(DRY), found, dry=True)
    assert not found.rows and ["expected one graph" in check.note for check in found.checks] == [True, True]
    spoil = lambda module: module.bias.data.add_(1) if isinstance(module, nn.Linear) else None  # noqa: E731
    monkeypatch.setattr(networks, "convert", lambda model, **options: model.apply(spoil))
    networks.measure(networks.settings("cpu", dry=True), Cpu(DRY), found, dry=True)
    assert not found.rows and "of its budget" in found.checks[-1].note and found.checks[-1].status == "failed"


def test_networks_differ_in_their_attention_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = networks.make_models((1, 1, 1, 1))
    assert tuple(made) == networks.COMPARED == tuple(cases.NETWORKS)
    keys = {name: set(model.state_dict()) for name, model in made.items()}
    assert keys["eager"] == keys["converted"] == keys["residual"] == keys["norm"]
    assert {key.partition(".se.")[2] for key in keys["eager"] - keys["plain"]} == {"conv.weight"}
    assert {key.split(".")[-2] for key in keys["se"] - keys["plain"]} == {"fc1", "fc2"}
    right, seen = functional.eca, []
    note = lambda *args, **more: seen.append(more.get("residual")) or right(*args, **more)  # noqa: E731
    monkeypatch.setattr(functional, "eca", note)
    made["converted"].eval()(torch.randn(1, 3, 32, 32))
    assert len(seen) == 4 and not any(x is not None for x in seen)
    made["residual"].eval()(torch.randn(1, 3, 32, 32))
    assert len(seen) == 8 and all(x is not None for x in seen[4:])


def test_settings_for_a_gpu_come_in_both_memory_formats() -> None:
    made = networks.settings("cuda", ("eager", "compiled"))
    kinds = Counter((of.how, of.phase, of.batch) for of in made)
    assert len(kinds) == 4 and set(kinds.values()) == {2} and {of.layout for of in made} == set(cases.LAYOUTS)
    assert made[0].names == networks.COMPARED and all({"plain", "eager", "residual"} <= set(of.names) for of in made)
    expected = {("eager", phase, "contiguous") for phase in cases.PHASES}
    assert {(of.how, of.phase, of.layout) for of in networks.settings("cpu")} == expected


TAIL = ("eager", "compile", "residual", "plain", "fused")


@pytest.mark.parametrize("phase", ["residual_forward", "residual_training"])
def test_the_tail_of_a_block_is_measured_in_five_ways(phase: str) -> None:
    wanted = job(phase, *TAIL, variant=cases.BLOCK)
    found = results.Results({}, list(run.run_job(wanted, Cpu(DRY))))
    assert [row.provider for row in found.rows] == list(TAIL)
    assert {row.bytes / row.map_bytes for row in found.rows} == {10 if "training" in phase else 3}
    lines = tables.blocks(found).rows
    assert len(lines) == 2 and lines[0][-1] == tables.factor(found.rows[3].q50 / found.rows[4].q50)


def test_a_wrong_tail_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = block.batch_norm_eca
    monkeypatch.setattr(block, "batch_norm_eca", lambda *args, **given: 1.01 * right(*args, **given))
    found = results.Results({})
    run.run([job("residual_training", "fused", variant=cases.BLOCK)], Cpu(DRY), found)
    assert not found.rows and "of its budget" in found.checks[-1].note
