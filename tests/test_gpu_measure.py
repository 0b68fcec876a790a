# SPDX-License-Identifier: MIT
"""What ``make gpu`` measures with, as far as a machine without a GPU can tell: units, providers, layers, networks."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

pytest.importorskip("timm")

from benchmarks import correctness
from benchmarks.cases import Case, resnet50
from benchmarks.gpu import kernels, machine, networks, one_call, providers, small_calls
from benchmarks.gpu.machine import Gpu, Rehearsal, host_seconds, replayed
from benchmarks.gpu.record import ALL_DONE, DEVICE_LOST, DONE, FAILED, SOME_FAILED, TIME_IS_UP, Record
from benchmarks.gpu.session import Session
from benchmarks.plan import Job
from benchmarks.run import make_call, make_sets
from benchmarks.timing import Timing
from eca_cuda.testing import ECA

ROOT = Path(__file__).parents[1]
SMALL = Case("resnet50.layer4.n3", 3, 16, 6, 8)


def job(phase: str = "forward", dtype: str = "float32", **changes: Any) -> Job:
    return Job(
        SMALL, "eca", phase, dtype, changes.pop("layout", "contiguous"), changes.pop("names", ("fused", "clone"))
    )


@pytest.fixture
def rehearsal() -> Iterator[Rehearsal]:
    threads = torch.get_num_threads()
    yield Rehearsal()
    torch.set_num_threads(threads)


# --- sessions ------------------------------------------------------------------------------------------------------


class Breakable(Rehearsal):
    usable = True

    def is_usable(self) -> bool:
        return self.usable


@pytest.fixture
def session(tmp_path: Path, rehearsal: Rehearsal) -> Session:
    return Session("step", Record(tmp_path), Breakable(), time.monotonic() + 60)


def test_a_unit_that_fails_is_recorded_and_the_next_one_begins(session: Session) -> None:
    def work(unit: str) -> dict[str, Any]:
        if unit == "bad":
            raise ValueError("the reason")
        return {"limit": [{"unit": unit}]}

    assert session.each(["good", "bad", "last"], work) == SOME_FAILED
    lines = session.record.known
    assert [line.status for line in lines.values()] == [DONE, FAILED, DONE]
    assert "the reason" in lines["step", "bad"].note and lines["step", "last"].found == {"limit": [{"unit": "last"}]}
    # All are known now, and the failure is not forgotten.
    assert session.each(["good", "bad", "last"], lambda unit: pytest.fail("done again")) == SOME_FAILED
    assert session.each(["good"], lambda unit: pytest.fail("done again")) == ALL_DONE
    session.record.sources = "others"  # the reason may be gone
    assert session.each(["bad"], lambda unit: {}) == ALL_DONE


def test_a_lost_device_ends_the_process_after_the_failure_is_recorded(session: Session) -> None:
    def work(unit: str) -> dict[str, Any]:
        session.machine.usable = False
        raise RuntimeError("an illegal memory access was encountered")

    assert session.each(["first", "second"], work) == DEVICE_LOST
    assert list(session.record.known) == [("step", "first")]


def test_no_unit_begins_after_the_deadline(session: Session) -> None:
    session.deadline = time.monotonic() - 1
    assert session.each(["first"], lambda unit: pytest.fail("begun")) == TIME_IS_UP
    assert session.record.known == {}


# --- machines ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match="expected a GPU that torch can use, got none; --dry"):
        Gpu()


def test_both_machines_can_do_what_the_steps_ask_for() -> None:
    asked = {name for name in vars(machine.Machine) if not name.startswith("_")}
    assert "replay" in asked
    assert asked <= set(dir(Gpu)) and asked <= set(dir(Rehearsal))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU of nothing but torch.cuda's names and signatures."""
    fake = create_autospec(torch.cuda)
    fake.is_available.return_value = True
    fake.get_device_properties.return_value = create_autospec(torch._C._CudaDeviceProperties, L2_cache_size=50 << 20)
    fake.CUDAGraph = create_autospec(torch.cuda.CUDAGraph)
    fake.profiler = create_autospec(torch.cuda.profiler)
    fake.memory_allocated.return_value, fake.max_memory_allocated.return_value = 100, 130
    monkeypatch.setattr(machine, "torch", SimpleNamespace(cuda=fake, zeros=torch.zeros, version=torch.version))
    return Gpu()


def test_the_gpu_calls_torch_by_names_and_signatures_that_exist(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, calls = machine.torch.cuda, []
    fake.Event.return_value.elapsed_time.return_value = 2.0
    with gpu.working(), gpu.profiled():
        assert gpu.stopwatch(lambda: calls.append("timed")) == 2e-3
        replay = gpu.replay([lambda: calls.append("first"), lambda: calls.append("second")])
    assert calls == ["timed", "first", "first", "first", "first", "second"]  # three to warm up, then each is captured
    assert replay == fake.CUDAGraph.return_value.replay
    fake.graph.assert_called_once_with(fake.CUDAGraph.return_value, stream=fake.Stream.return_value, pool=None)
    pool = gpu.pool()
    gpu.replay([lambda: None], pool)
    assert pool == fake.graph_pool_handle.return_value and fake.graph.call_args.kwargs["pool"] == pool
    fake.stream.assert_called_once_with(fake.Stream.return_value)
    fake.profiler.start.assert_called_once_with()
    assert gpu.peak_bytes(lambda: None) == 30
    assert gpu.rotated_bytes == 200 << 20
    assert gpu.facts()["l2_bytes"] == 50 << 20 and gpu.state() == {}
    gpu.release()
    gpu.device = "cpu"
    assert gpu.is_usable()
    fake.synchronize.side_effect = RuntimeError("an illegal memory access was encountered")
    assert not gpu.is_usable()


def test_the_driver_is_asked_for_clocks_and_temperature(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1980, 2619, 41, 305.10, 0x0000000000000000'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpu.state() == dict(zip(machine._ASKED, ["1980", "2619", "41", "305.10", "0x" + 16 * "0"], strict=True))


def test_no_map_is_so_small_that_those_in_turn_fit_into_the_cache(rehearsal: Rehearsal) -> None:
    for map_bytes in (100, 4096, 9216):
        count = machine.maps_in_turn(rehearsal, map_bytes)
        assert (count - 1) * map_bytes < rehearsal.rotated_bytes <= count * map_bytes
    rehearsal.rotated_bytes = 1 << 16
    found = kernels.run_job(job(names=("clone",)), rehearsal)
    count = len(range(0, 1 << 16, SMALL.elements * 4))
    assert (
        found["rows"][0]["gpu"]["rotated_bytes"] == count * SMALL.elements * 4 and found["states"][0]["sets"] == count
    )


def test_replays_are_timed_per_call_and_in_turn(rehearsal: Rehearsal) -> None:
    now, log = [0.0], []

    def call(name: str, seconds: float) -> Any:
        def spend() -> None:
            now[0] += seconds
            log.append(name)

        return spend

    def watch(run: Any) -> float:
        start = now[0]
        run()
        return now[0] - start

    rehearsal.stopwatch = watch
    timings = replayed(rehearsal, {"slow": [call("a", 2.0), call("b", 4.0)], "fast": [call("c", 0.5)] * 2})
    assert timings == {"slow": Timing(3, 3, 3, 2, 2), "fast": Timing(0.5, 0.5, 0.5, 2, 2)}
    assert log[-8:] == ["a", "b", "c", "c", "c", "c", "a", "b"]  # the order of the providers rotates


def test_host_time_does_not_wait_for_the_device(rehearsal: Rehearsal) -> None:
    waits = []
    rehearsal.wait = lambda: waits.append(time.sleep(0.05))
    rehearsal.host_calls = 3
    calls = []
    assert host_seconds(rehearsal, [lambda: calls.append(1), lambda: calls.append(2)]) < 0.01
    assert calls == [1, 2, 1] * 5 and len(waits) == 5


# --- layers --------------------------------------------------------------------------------------------------------


def test_the_headline_comes_first_and_everything_else_after_it() -> None:
    jobs = kernels.jobs()
    assert len({str(job) for job in jobs}) == len(jobs)
    first = jobs[:4]
    assert [job.case for job in first] == list(resnet50(256))
    assert {(job.phase, job.dtype, job.layout) for job in first} == {("forward", "float16", "contiguous")}
    assert set(first[0].providers) == set(providers.PROVIDERS) - {"two-phase"}
    settings = {(job.case.n, job.phase, job.dtype, job.layout) for job in jobs}
    assert len(settings) == 3 * 6 * 3 * 2  # batches, phases, dtypes, layouts
    assert len(jobs) == len(settings) * 14  # layers of the two networks
    assert all({"fused", "clone"} <= set(job.providers) for job in jobs)


@pytest.mark.parametrize("phase", ["training", "residual_training"])
@pytest.mark.parametrize("name", ["eager", "timm", "fused", "two-phase"])
def test_providers_compute_the_reference(name: str, phase: str) -> None:
    wanted = job(phase, names=(name,))
    module = providers.make_module(wanted, "cpu")
    layer = providers.make_layers(wanted, module, wanted.providers)[name]
    maps = make_sets(wanted)[0]
    options = {"residual": maps.inputs[1], "activation": "relu"} if len(maps.inputs) > 1 else {}
    leaves = [x.requires_grad_() for x in maps.inputs]
    expected = torch.autograd.grad(
        ECA.reference(leaves[0], *module.parameters(), **options), [*leaves, *module.parameters()], maps.grad_y
    )
    torch.testing.assert_close(make_call(layer, phase, maps)(), expected)


def test_a_backward_pass_alone_has_the_gradients_of_training_and_no_forward_pass() -> None:
    module = providers.make_module(job(), "cpu")
    results, forwards = {}, {}
    for phase in ("training", "backward"):
        torch.manual_seed(0)
        wanted, seen = job(phase), []
        layer = providers.make_layers(wanted, module, ["eager"])["eager"]
        counted = replace(layer, call=lambda x, seen=seen, call=layer.call: seen.append(1) or call(x))
        call = make_call(counted, phase, make_sets(wanted)[0])
        results[phase] = (call(), call())[1]  # a second time, as a replayed one is
        forwards[phase] = len(seen)
    torch.testing.assert_close(results["training"], results["backward"])
    assert forwards == {"training": 2, "backward": 1}


def test_compiled_providers_are_of_the_layer_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        torch, "compile", lambda layer, **options: made.append((type(layer).__name__, options)) or layer
    )
    wanted = job(names=("compile", "compile-timm", "autotune", "autotune-timm"))
    providers.make_layers(wanted, providers.make_module(wanted, "cpu"), wanted.providers)
    modes = {"dynamic": False, "mode": None}, {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}
    assert made == [(layer, mode) for mode in modes for layer in ("EagerECA", "TimmECA")]


def test_a_provider_that_cannot_do_a_job_is_noted_and_the_others_are_timed(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.TimmECA, "forward", lambda self, x: 1 / 0)
    found = kernels.run_job(job(names=("timm", "fused", "clone")), rehearsal)
    assert [row["provider"] for row in found["rows"]] == ["fused", "clone"]
    (refused,) = found["refused"]
    assert refused["provider"] == "timm" and "1 / 0" in refused["error"]
    assert refused["reason"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("name", providers.OURS)
def test_ours_may_not_refuse(name: str, rehearsal: Rehearsal) -> None:
    """What is right when it is called and can't be captured is a failure, and not a provider that is missing."""

    def replay(calls: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    rehearsal.replay = replay
    with pytest.raises(RuntimeError, match="not permitted"):
        kernels.run_job(job(names=(name,)), rehearsal)


def test_a_wrong_layer_is_not_timed(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    right = providers.EfficientChannelAttention.forward
    wrong = lambda self, *args, **options: right(self, *args, **options) * 1.01  # noqa: E731
    monkeypatch.setattr(providers.EfficientChannelAttention, "forward", wrong)
    monkeypatch.setattr(kernels, "replayed", lambda *args: pytest.fail("timed before it was checked"))
    with pytest.raises(Exception, match="of its budget"):
        kernels.run_job(job("residual_training", "float16"), rehearsal)


@pytest.mark.parametrize("phase", ["forward", "training", "residual_training"])
@pytest.mark.parametrize("sample", range(3))
def test_one_wrong_sample_of_the_batch_is_noticed(phase: str, sample: int) -> None:
    wanted = job(phase)
    layers = providers.make_layers(wanted, providers.make_module(wanted, "cpu"), ("fused",))
    maps = make_sets(wanted)[0]
    correctness.check_batch(wanted, ECA, layers["fused"], maps)
    factor = torch.ones(3, 1, 1, 1)
    factor[sample] = 1.001
    wrong = replace(layers["fused"], call=lambda *inputs: layers["fused"].call(*inputs) * factor)
    with pytest.raises(correctness.GateError, match=r"y in its batch.*of its budget"):
        correctness.check_batch(wanted, ECA, wrong, maps)


TRITON = """
import torch
from benchmarks.gpu.triton_two_kernels import eca
from eca_cuda.testing import ECA, channels_last, check_against_reference, make_x

def function(x, weight, residual):
    return eca(x, weight) if x.dtype == torch.float32 else ECA.reference(x, weight)

for shape in ((2, 5, 3, 7), (1, 70, 6, 6), (2, 3, 50, 50)):
    for layout in (torch.clone, channels_last):
        x, grad_y = (layout(make_x(shape, seed=seed)) for seed in (0, 1))
        for k in (1, 5):
            weight = ECA.make_parameters(shape[1], k=k)
            worst = check_against_reference(ECA, x, weight, grad_y=grad_y, function=function)
            assert worst > 0
"""


def test_the_triton_version_computes_the_reference() -> None:
    """In Triton's interpreter, which a process has or has not from its start."""
    pytest.importorskip("triton")
    environment = {"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TRITON], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


# --- calls under other tools ---------------------------------------------------------------------------------------


def test_small_calls_notice_a_wrong_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = small_calls.CALLS[-2:]
    assert small_calls.main("cpu", calls) == 0
    assert "36 calls" in capsys.readouterr().out
    wrong = replace(ECA, function=lambda *args, **options: ECA.function(*args, **options) * 1.01)
    monkeypatch.setattr(small_calls, "VARIANTS", (wrong,))
    with pytest.raises(AssertionError, match="of its budget"):
        small_calls.main("cpu", calls)


def test_the_profiler_sees_one_call_of_ours(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    events = []

    @contextmanager
    def profiled() -> Iterator[None]:
        events.append("start")
        yield
        events.append("stop")

    make = one_call.make_call
    monkeypatch.setattr(one_call, "make_call", lambda *args: lambda: events.append("call") or make(*args)())
    rehearsal.profiled = profiled
    assert one_call.main(SMALL, "training", rehearsal) == 0
    assert events == ["call", "start", "call", "stop"]


# --- networks ------------------------------------------------------------------------------------------------------


def test_settings_begin_with_the_large_batches_and_leave_none_out() -> None:
    settings = networks.settings()
    assert len(set(settings)) == len(settings)
    assert (settings[0].phase, settings[0].batch) == ("forward", 256)
    assert {(s.phase, s.batch) for s in settings if s.compiled} == {(s.phase, s.batch) for s in settings}
    assert len(settings) == 5 * 2 * 2 * 2  # phases and batches, dtypes, layouts, eager or compiled


def test_a_wrong_network_is_not_timed(monkeypatch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    def wrong(model: torch.nn.Module, **options: bool) -> torch.nn.Module:
        with torch.no_grad():
            model.fc.bias += 1
        return model

    monkeypatch.setattr(networks, "convert", wrong)
    with pytest.raises(Exception, match="of its budget"):
        networks.make_models(rehearsal)
