# SPDX-License-Identifier: MIT
"""What is measured on, and the only place that knows: a GPU, or in a rehearsal the CPU, with tiny sizes."""

import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ..timing import Budget, Call, Timing, measure

_ASKED = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")


class Machine(Protocol):
    """The differences between a GPU and a rehearsal."""

    device: str
    dry: bool
    budget: Budget  # of one provider against others
    rotated_bytes: int  # together the maps that calls use in turn have at least as many
    host_calls: int  # in a row, for the time that Python and the driver need

    def working(self) -> Any:
        """The context in which everything runs."""

    def stopwatch(self, call: Call) -> float:
        """Seconds that the device needs for the work that ``call`` gives it."""

    def replay(self, calls: Sequence[Call], pool: Any = None) -> Call:
        """One call that does all of them with outputs that lie in different places; in the same ones as those of other
        replays with this pool."""

    def pool(self) -> Any:
        """For replays, one of which has to live as long as others are made."""

    def peak_bytes(self, call: Call) -> int:
        """The most that is held during ``call`` beyond what was held before."""

    def profiled(self) -> Any:
        """The context that a profiler looks at."""

    def state(self) -> dict[str, Any]:
        """Clocks and temperature now."""

    def facts(self) -> dict[str, Any]:
        """What it is."""

    def wait(self) -> None:
        """Until the device has done all its work."""

    def is_usable(self) -> bool:
        """Whether this process can still use it."""

    def release(self) -> None:
        """Give back the memory that is not in use."""


class Gpu:
    """The current CUDA device. All work is on one stream, since a graph can't be captured on the default one."""

    device = "cuda"
    dry = False
    budget = Budget(warmup=0.02, sample=4e-3, total=0.3, min_rounds=7)
    host_calls = 50

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("make gpu: expected a GPU that torch can use, got none; --dry rehearses without")
        self.properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.rotated_bytes = 4 * self.properties.L2_cache_size
        self.stream = torch.cuda.Stream()

    @contextmanager
    def working(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield
            torch.cuda.synchronize()  # so that an error is this unit's and not the next one's

    def stopwatch(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def replay(self, calls: Sequence[Call], pool: Any = None) -> Call:
        for _ in range(3):  # compiles, asks the driver what it asks once, fills the allocator
            calls[0]()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, pool=pool):
            outputs = [call() for call in calls]  # held until the end, so that no two lie in the same place
        del outputs
        return graph.replay

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def peak_bytes(self, call: Call) -> int:
        call()  # what libraries keep stays allocated from here on
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before

    @contextmanager
    def profiled(self) -> Iterator[None]:
        self.wait()
        torch.cuda.profiler.start()
        yield
        self.wait()
        torch.cuda.profiler.stop()

    def state(self) -> dict[str, Any]:
        return dict(zip(_ASKED, _ask_smi(_ASKED), strict=False))

    def facts(self) -> dict[str, Any]:
        of = self.properties
        return {
            "name": of.name,
            "capability": f"{of.major}.{of.minor}",
            "multiprocessors": of.multi_processor_count,
            "memory_bytes": of.total_memory,
            "l2_bytes": of.L2_cache_size,
            "driver": next(iter(_ask_smi(("driver_version",))), ""),
            "cuda": torch.version.cuda,
        }

    def wait(self) -> None:
        torch.cuda.synchronize()

    def is_usable(self) -> bool:
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device=self.device).add_(1).item()
        except RuntimeError:
            return False
        return True

    def release(self) -> None:
        torch.cuda.empty_cache()


class Rehearsal:
    """The CPU in the place of a GPU: everything runs, and no figure means anything."""

    device = "cpu"
    dry = True
    budget = Budget(warmup=0, sample=1e-6, total=0, min_rounds=2)
    rotated_bytes = 1 << 12
    host_calls = 1

    def __init__(self) -> None:
        torch.set_num_threads(1)

    @contextmanager
    def working(self) -> Iterator[None]:
        yield

    def stopwatch(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def replay(self, calls: Sequence[Call], pool: Any = None) -> Call:
        def one_by_one() -> None:
            for call in calls:
                call()

        return one_by_one

    def pool(self) -> Any:
        return None

    def peak_bytes(self, call: Call) -> int:
        call()
        return 0  # not known: the allocator of a CPU counts nothing

    @contextmanager
    def profiled(self) -> Iterator[None]:
        yield

    def state(self) -> dict[str, Any]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"name": "rehearsal", "driver": "none"}

    def wait(self) -> None:
        pass

    def is_usable(self) -> bool:
        return True

    def release(self) -> None:
        pass


def maps_in_turn(machine: Machine, map_bytes: int) -> int:
    """How many maps of a size the calls use in turn, so that none is in a cache when its turn comes."""
    return math.ceil(machine.rotated_bytes / map_bytes)


def time_replays(
    machine: Machine, replays: Mapping[str, Call], calls: int, budget: Budget | None = None
) -> dict[str, Timing]:
    """Replays of ``calls`` calls each, timed against each other; per call. Of a rehearsal the budget is its own."""
    chosen = machine.budget if budget is None or machine.dry else budget
    timings = measure({name: [replay] for name, replay in replays.items()}, chosen, stopwatch=machine.stopwatch)
    return {name: _per_call(timing, calls) for name, timing in timings.items()}


def replayed(machine: Machine, calls: Mapping[str, Sequence[Call]]) -> dict[str, Timing]:
    """Every provider's calls, as many for each, as one replay."""
    (count,) = {len(of) for of in calls.values()}
    return time_replays(machine, {name: machine.replay(of) for name, of in calls.items()}, count)


def launched(machine: Machine, calls: Mapping[str, Sequence[Call]]) -> dict[str, Timing]:
    """The same, each call launched from Python: where launching takes longer than the work, that is what is seen."""
    return measure(calls, machine.budget, stopwatch=machine.stopwatch)


def host_seconds(machine: Machine, calls: Sequence[Call]) -> float:
    """Seconds that Python and the driver need to launch one call, the device not waited for: the median of five."""
    some = (list(calls) * math.ceil(machine.host_calls / len(calls)))[: machine.host_calls]

    def launch() -> float:
        machine.wait()
        start = time.perf_counter()
        for call in some:
            call()
        return (time.perf_counter() - start) / len(some)

    return statistics.median(launch() for _ in range(5))


def _per_call(timing: Timing, calls: int) -> Timing:
    """The timing of one of ``calls`` calls that were timed as one."""
    times: list[float] = [seconds / calls for seconds in (timing.q20, timing.q50, timing.q80)]
    return Timing(*times, timing.rounds, timing.repetitions * calls)


def _ask_smi(fields: Sequence[str]) -> list[str]:
    """What nvidia-smi says of the first GPU; nothing where it is missing or does not know a field."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    return [value.strip() for value in done.stdout.strip().split(",")] if done.returncode == 0 else []
