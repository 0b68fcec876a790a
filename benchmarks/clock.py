# SPDX-License-Identifier: MIT
"""What is measured on, and the only place that knows: the CPU, or a GPU. A rehearsal of a GPU's run is a CPU's."""

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
    """Calls are timed one by one, on maps that the calls of a job use in turn."""

    device = "cpu"
    # More than the last-level cache, as the activations of a network are; of tiny maps a few, so that none stays in L1.
    rotated_bytes = 64 << 20
    most_sets = 16

    def __init__(self, budget: Budget = STANDARD) -> None:
        self.budget = budget
        # glibc's thresholds as they become in a process that runs for long; else chance decides who pays page faults.
        with contextlib.suppress(AttributeError):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(-3, 32 << 20), ctypes.CDLL(None).mallopt(-1, 64 << 20)

    def sets(self, map_bytes: int) -> int:
        """How many sets of maps the calls use in turn, so that none is in a cache when its turn comes."""
        return min(math.ceil(self.rotated_bytes / map_bytes), self.most_sets)

    def capture(self, calls: Sequence[Call], pool: Any = None) -> Call:
        """One call for :meth:`time`: here, each time the next one of ``calls``."""
        turn = itertools.cycle(calls)
        return lambda: next(turn)()

    def time(self, captured: Mapping[str, Call], count: int, budget: Budget | None = None) -> dict[str, Timing]:
        """Time providers against each other, per call, each captured from ``count`` calls."""
        return measure(captured, budget or self.budget)

    def pool(self) -> Any:
        """Memory that several captures may share."""
        return None

    def around(self, calls: Sequence[Call]) -> dict[str, Any]:
        """What else is known of a layer's call."""
        return {}

    def peak_bytes(self, call: Call) -> int:
        """The most that torch's allocator holds during ``call`` beyond what it held before."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()  # what is freed below is known to the profiler only if it saw it come
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
        """The context in which everything runs; an error of the device is raised at its end."""
        yield

    def check(self) -> None:
        """RuntimeError where an error has cost this process the device."""

    def facts(self) -> dict[str, Any]:
        """What it is, for the environment."""
        return {}

    def state(self) -> str:
        """Clocks and temperature now."""
        return ""


class Gpu(Cpu):
    """Calls of layers are timed as replayed CUDA graphs, so that what is seen is the device's work and not Python's."""

    device = "cuda"
    most_sets = 1 << 12

    def __init__(self, budget: Budget = _OF_GPU) -> None:
        if not torch.cuda.is_available():
            raise SystemExit("--device: expected a GPU that torch can use, got none; --device cpu, or make gpu DRY=1")
        super().__init__(budget)
        self.properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.rotated_bytes = 4 * self.properties.L2_cache_size
        self.stream = torch.cuda.Stream()  # a graph can't be captured on the default one
        torch.set_float32_matmul_precision("highest")

    def capture(self, calls: Sequence[Call], pool: Any = None) -> Call:
        """All calls as one graph, with outputs that lie in different places, or those of other graphs of this pool."""
        for _ in range(3):  # compiles, asks the driver what it asks once, fills the allocator
            calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, pool=pool):
            outputs = [call() for call in calls]  # held until the end, so that no two lie in the same place
        del outputs
        return graph.replay

    def time(self, captured: Mapping[str, Call], count: int, budget: Budget | None = None) -> dict[str, Timing]:
        return measure(captured, budget or self.budget, self._by_events, per=count)

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def around(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Microseconds matter here: ``launched`` is the time of one call by events where Python launches each, ``host``
        what Python and the driver need for it, the device not waited for; seconds, the medians of three."""
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
    """What nvidia-smi says of the first GPU; nothing where it is missing or does not know a field."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
