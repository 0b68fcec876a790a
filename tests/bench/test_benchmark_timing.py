# SPDX-License-Identifier: MIT
"""Timing: interleaved rounds, calibrated samples, quantiles; and the devices, ``Cpu`` and ``Gpu``."""

import functools
import gc
import inspect
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, create_autospec

import pytest
import torch

from benchmarks import clock, timing
from benchmarks.clock import DRY, Cpu, Gpu
from benchmarks.timing import Budget, Timing, measure, verdict


class FakeMachine:
    """A clock that only the calls advance, with a log of the calls."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []
        self.watch = functools.partial(timing.by_clock, clock=lambda: self.now)

    def spend(self, name: str, seconds: list[float]) -> None:
        self.now += seconds.pop(0) if len(seconds) > 1 else seconds[0]
        self.log.append(name)

    def call(self, name: str, *seconds: float) -> timing.Call:
        """A call that takes these seconds in turn, and the last of them from then on."""
        return functools.partial(self.spend, name, list(seconds))

    def measure(self, calls: dict[str, timing.Call], budget: Budget, **options: int) -> dict[str, Timing]:
        return measure(calls, budget, self.watch, clock=lambda: self.now, **options)


def test_measure_interleaves_rotates_and_calibrates() -> None:
    machine = FakeMachine()
    calls = {"slow": machine.call("slow", 9, 0.5), "fast": machine.call("fast", 9, 0.125)}  # the first call compiles
    budget = Budget(warmup=0.5, sample=0.25, total=3.0, min_rounds=2)
    # A round is one slow call and two fast ones: 0.75 s, of which 3 s hold four.
    assert machine.measure(calls, budget) == {"slow": Timing(0.5, 0.5, 0.5, 4), "fast": Timing(0.125, 0.125, 0.125, 4)}
    assert machine.log[-12:] == ["slow", "fast", "fast", "fast", "fast", "slow"] * 2
    assert machine.measure(calls, budget, per=5)["slow"] == Timing(0.1, 0.1, 0.1, 4)


def test_a_device_is_timed_by_its_own_stopwatch() -> None:
    calls, budget = [], Budget(0, sample=6, total=0, min_rounds=2)
    timed = measure({"call": lambda: calls.append(1)}, budget, lambda run: run() or 3.0)
    assert timed == {"call": Timing(1.5, 1.5, 1.5, 2)} and len(calls) == 6  # two to warm up, then two calls a sample


def test_quantiles_are_those_of_the_samples_and_a_verdict_needs_ranges_that_do_not_overlap() -> None:
    machine = FakeMachine()
    call = machine.call("call", 1, 1, *range(11, 0, -1))  # the first call, the warm-up, eleven samples
    budget = Budget(warmup=1, sample=1, total=1000, min_rounds=1, max_rounds=11)
    timed = machine.measure({"call": call}, budget)["call"]
    assert timed == Timing(3, 6, 9, 11)
    assert verdict(timed, Timing(10, 11, 12, 9)) == "slower" and verdict(timed, Timing(1, 2, 2.5, 9)) == "faster"
    assert verdict(timed, Timing(9, 11, 12, 9)) == "" == verdict(timed, Timing(1, 2, 3, 9))


def test_the_garbage_collector_is_off_while_timing() -> None:
    seen = []
    measure({"call": lambda: seen.append(gc.isenabled())}, DRY)
    assert set(seen) == {False} and gc.isenabled()


def test_calls_on_a_cpu_rotate_over_maps_that_together_exceed_the_cache() -> None:
    assert [Cpu().sets(size) for size in (100, 5 << 20, 64 << 20, 100 << 20)] == [16, 13, 1, 1]
    log = []
    captured = Cpu().capture([lambda: log.append("a"), lambda: log.append("b"), lambda: log.append("c")])
    timed = Cpu().time({"all": captured}, 3, Budget(0, sample=1e-12, total=0, min_rounds=3))["all"]
    assert "".join(log) == "abcab" and timed.rounds == 3 and 0 < timed.q20 <= timed.q50 <= timed.q80


def test_peak_memory_does_not_count_what_was_held_before() -> None:
    kept = []

    def call() -> None:
        kept.clear()  # as a step of training does with gradients
        first = torch.empty(1_000_000)
        del first
        torch.empty(500_000), kept.append(torch.empty(750_000)), torch.empty(1_500_000)

    assert [Cpu().peak_bytes(call) for _ in range(3)] == pytest.approx([8_000_000] * 3, rel=0.01)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mock:
    """A mock with the names and signatures of torch.cuda, and no nvidia-smi."""
    fake = create_autospec(torch.cuda)
    fake.get_device_properties.return_value = create_autospec(torch._C._CudaDeviceProperties, L2_cache_size=50 << 20)
    fake.CUDAGraph = create_autospec(torch.cuda.CUDAGraph)
    fake.memory_allocated.return_value, fake.max_memory_allocated.return_value = 100, 130
    fake.Event.return_value.elapsed_time.return_value = 2.0  # milliseconds
    precision = create_autospec(torch.set_float32_matmul_precision)
    names = {"cuda": fake, "version": torch.version, "set_float32_matmul_precision": precision}
    monkeypatch.setattr(clock, "torch", SimpleNamespace(**names))
    monkeypatch.setenv("PATH", str(tmp_path))
    return fake


def test_a_gpu_is_required_and_captures_all_calls_in_one_graph(cuda: Mock) -> None:
    gpu, log = Gpu(), []
    cuda.is_available.return_value = False
    with pytest.raises(SystemExit, match=r"expected a GPU that torch can use, got none; use --device cpu, or make"):
        Gpu()
    with gpu.working():
        captured = gpu.capture([lambda: log.append("first"), lambda: log.append("second")])
    assert log == ["first", "first", "first", "first", "second"]  # three to warm up, then each is captured
    graph, stream = cuda.CUDAGraph.return_value, cuda.Stream.return_value
    assert captured == graph.replay
    cuda.graph.assert_called_once_with(graph, stream=stream, pool=None)
    cuda.stream.assert_called_once_with(stream)
    gpu.capture([lambda: None], gpu.pool())
    assert cuda.graph.call_args.kwargs["pool"] == cuda.graph_pool_handle.return_value
    clock.torch.set_float32_matmul_precision.assert_called_once_with("highest")
    assert gpu.rotated_bytes == 200 << 20 and gpu.sets(1 << 20) == 200 and gpu.sets(1) == 4096
    cuda.synchronize.side_effect = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"), gpu.working():
        pass  # errors are raised at the end of the work, or by check()
    with pytest.raises(RuntimeError, match="illegal"):
        gpu.check()


def test_a_gpu_is_timed_by_events_per_captured_call_and_its_host_does_not_wait(cuda: Mock, monkeypatch) -> None:
    timed = Gpu().time({"eight calls": lambda: None}, 8, DRY)
    assert timed == {"eight calls": Timing(0.25e-3, 0.25e-3, 0.25e-3, 2)}
    cuda.Event.assert_called_with(enable_timing=True)
    assert "enable_timing" in inspect.signature(torch.cuda.Event.__new__).parameters
    machine = FakeMachine()
    monkeypatch.setattr(clock, "by_clock", machine.watch)
    cuda.synchronize.side_effect = machine.call("wait", 100)
    found = Gpu().around([machine.call("a", 1.0), machine.call("b", 2.0)])
    assert found == {"launched": pytest.approx(2e-3 / 10), "host": 1.5, "peak_bytes": 30}
    assert machine.log.count("a") == 2 + machine.log.count("b") == 6 * 5 + 2  # launched, host; and twice for the peak
    assert machine.log.count("wait") == 3 + 1


def test_nvidia_smi_may_be_missing_or_silent(cuda: Mock, tmp_path: Path) -> None:
    of = cuda.get_device_properties.return_value
    of.name, of.major, of.minor, gpu = "NVIDIA Test", 9, 0, Gpu()
    assert (gpu.facts()["driver"], gpu.state()) == ("", "")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'not a valid field'; exit 2")
    smi.chmod(0o755)
    assert (gpu.facts()["driver"], gpu.state()) == ("", "")
    answer = (
        f"echo \"$@\" >> {tmp_path}/asked; case $1 in *driver*) echo 580.1;; *) echo '1980, 2619, 41, 305.10';; esac"
    )
    smi.write_text(f"#!/bin/sh\n{answer}\n")
    facts = gpu.facts()
    assert [facts[key] for key in ("name", "capability", "driver", "l2_bytes")] == [of.name, "9.0", "580.1", 50 << 20]
    assert gpu.state() == "clocks.sm 1980 MHz, clocks.mem 2619 MHz, temperature.gpu 41 degrees, power.draw 305.10 W"
    assert "clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader" in (tmp_path / "asked").read_text()
