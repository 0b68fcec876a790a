# SPDX-License-Identifier: MIT
"""The device that calls are timed on: ``Cpu``, or ``Gpu``. A dry run of ``make gpu`` uses ``Cpu``."""

import contextlib
import ctypes
import itertools
import math
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .timing import Budget, Call, Timing, by_clock, measure

STANDARD = Budget(warmup=0.03, sample=2e-3, total=0.5, min_rounds=7)
QUICK = Budget(warmup=0.005, sample=1e-3, total=0.1, min_rounds=3)
DRY = Budget(warmup=0, sample=1e-6, total=0, min_rounds=2)
_OF_GPU = Budget(warmup=0.01, sample=2e-3, total=0.1, min_rounds=7)


class Cpu:
    """Times calls one by one; the calls of a job rotate over sets of maps."""

    device = "cpu"
    # Together the sets exceed the last-level cache, as the activations of a network do, except for tiny maps.
    rotated_bytes = 64 << 20
    most_sets = 16

    def __init__(self, budget: Budget = STANDARD) -> None:
        self.budget = budget
        # The thresholds that glibc reaches in a long-running process; otherwise page faults vary between providers.
        with contextlib.suppress(AttributeError):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(-3, 32 << 20), ctypes.CDLL(None).mallopt(-1, 64 << 20)

    def sets(self, map_bytes: int) -> int:
        """The number of sets of maps to rotate over, so that a set has left the cache when it is used again."""
        return min(math.ceil(self.rotated_bytes / map_bytes), self.most_sets)

    def capture(self, calls: Sequence[Call], pool: Any = None) -> Call:
        """A call for :meth:`time`. On a CPU each call of it runs the next one of ``calls``."""
        turn = itertools.cycle(calls)
        return lambda: next(turn)()

    def time(self, captured: Mapping[str, Call], count: int, budget: Budget | None = None) -> dict[str, Timing]:
        """Time providers in interleaved rounds; the result is per call. Each was captured from ``count`` calls."""
        return measure(captured, budget or self.budget)

    def pool(self) -> Any:
        """A memory pool that several captures may share."""
        return None

    def around(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Further measurements of a layer's call."""
        return {}

    def peak_bytes(self, call: Call) -> int:
        """The most that torch's allocator holds during ``call`` beyond what it held before."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()  # the profiler reports a free only for memory whose allocation it saw
            with record_function("measured"):
                call()
        events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        start, held, peak = next(event.start_ns() for event in events if event.name() == "measured"), 0, 0
        for event in events:
            if event.name() == "[memory]" and event.start_ns() >= start:
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """The context for all calls; errors of the device are raised at its end."""
        yield

    def check(self) -> None:
        """Raises RuntimeError if the device can no longer be used in this process."""

    def facts(self) -> dict[str, Any]:
        """Facts about the device, for the environment."""
        return {}

    def state(self) -> str:
        """The current clocks, temperature and power."""
        return ""


class Gpu(Cpu):
    """Times calls of layers as replayed CUDA graphs: the work of the device without Python's."""

    device = "cuda"
    most_sets = 1 << 12

    def __init__(self, budget: Budget = _OF_GPU) -> None:
        if not torch.cuda.is_available():
            raise SystemExit(
                "--device: expected a GPU that torch can use, got none; use --device cpu, or make gpu DRY=1"
            )
        super().__init__(budget)
        self.properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.rotated_bytes = 4 * self.properties.L2_cache_size
        self.stream = torch.cuda.Stream()  # a graph can't be captured on the default one
        torch.set_float32_matmul_precision("highest")

    def capture(self, calls: Sequence[Call], pool: Any = None) -> Call:
        """One graph of all calls. Their outputs do not share memory, except with other graphs of this pool."""
        for _ in range(3):  # compiles, does one-time queries of the driver, fills the allocator
            calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, pool=pool):
            outputs = [call() for call in calls]  # all are kept, so that no two share memory
        del outputs
        return graph.replay

    def time(self, captured: Mapping[str, Call], count: int, budget: Budget | None = None) -> dict[str, Timing]:
        return measure(captured, budget or self.budget, self._by_events, per=count)

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def around(self, calls: Sequence[Call]) -> dict[str, Any]:
        """``launched``: seconds per call by events where Python launches each call. ``host``: seconds per call that
        Python and the driver take, without waiting for the device. Both are medians of three."""
        some = list(itertools.islice(itertools.cycle(calls), 10))

        def launch() -> None:
            for call in some:
                call()

        launched = [self._by_events(launch) / len(some) for _ in range(3)]
        host = []
        for _ in range(3):
            torch.cuda.synchronize()
            host.append(by_clock(launch) / len(some))
        peak = self.peak_bytes(calls[0])
        return {"launched": statistics.median(launched), "host": statistics.median(host), "peak_bytes": peak}

    def peak_bytes(self, call: Call) -> int:
        call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield
            torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def check(self) -> None:
        torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        of = self.properties
        known = {"name": of.name, "capability": f"{of.major}.{of.minor}", "multiprocessors": of.multi_processor_count}
        known |= {"memory_bytes": of.total_memory, "l2_bytes": of.L2_cache_size}
        return known | {"driver": _ask_smi("driver_version"), "cuda": torch.version.cuda}

    def state(self) -> str:
        asked = {"clocks.sm": "MHz", "clocks.mem": "MHz", "temperature.gpu": "degrees", "power.draw": "W"}
        values = zip(asked.items(), filter(None, _ask_smi(",".join(asked)).split(", ")), strict=False)
        return ", ".join(f"{name} {value} {unit}" for (name, unit), value in values)

    def _by_events(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def _ask_smi(fields: str) -> str:
    """The output of nvidia-smi for the first GPU; empty if it is missing or does not know a field."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
