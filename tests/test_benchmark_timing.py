# SPDX-License-Identifier: MIT
"""How the benchmarks take time: interleaved rounds, calibrated samples, quantiles, and a device's own stopwatch."""

import torch

from benchmarks import timing
from benchmarks.timing import Budget, Timing


class FakeMachine:
    """A clock that only the calls advance, and the log of who called."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, []  # type: tuple[float, list[str]]

    def call(self, name: str, seconds: float) -> timing.Call:
        def spend() -> None:
            self.now += seconds
            self.log.append(name)

        return spend


def test_measure_interleaves_rotates_and_calibrates() -> None:
    machine = FakeMachine()
    calls = {
        "slow": [machine.call("slow", 0.5)],
        "fast": [machine.call("fast/0", 0.125), machine.call("fast/1", 0.125)],
    }
    budget = Budget(warmup=0.5, sample=0.25, total=3.0, min_rounds=2)
    timings = timing.measure(calls, budget, clock=lambda: machine.now)
    # A round is one slow call and two fast ones: 0.75 s, of which 3 s hold four.
    assert timings == {"slow": Timing(0.5, 0.5, 0.5, 4, 1), "fast": Timing(0.125, 0.125, 0.125, 4, 2)}
    measured = [name.partition("/")[0] for name in machine.log[-12:]]
    assert measured == ["slow", "fast", "fast", "fast", "fast", "slow"] * 2
    fast = [name for name in machine.log if name != "slow"]
    assert fast == [f"fast/{i % 2}" for i in range(len(fast))]


def test_a_device_is_timed_by_its_own_stopwatch() -> None:
    machine = FakeMachine()

    def watch(run: timing.Call) -> float:
        run()
        return 3.0

    calls = {"call": [machine.call("call", 1.0)]}
    budget = Budget(warmup=0, sample=6.0, total=0, min_rounds=2)
    timed = timing.measure(calls, budget, clock=lambda: machine.now, stopwatch=watch)["call"]
    assert (timed.q50, timed.repetitions) == (1.5, 2)  # two calls a sample, of which the watch says 3 s


def test_measure_returns_ordered_quantiles_of_real_calls() -> None:
    timed = timing.measure({"sum": [torch.arange(9).sum]}, timing.QUICK)["sum"]
    assert 0 < timed.q20 <= timed.q50 <= timed.q80


def test_quantiles_are_those_of_the_samples() -> None:
    machine = FakeMachine()
    seconds = iter([1.0, 1.0, *range(1, 12)])  # the first call, the warm-up, eleven samples

    def call() -> None:
        machine.now += next(seconds)

    budget = Budget(warmup=1.0, sample=1.0, total=1000.0, min_rounds=1, max_rounds=11)
    timed = timing.measure({"call": [call]}, budget, clock=lambda: machine.now)["call"]
    assert (timed.q20, timed.q50, timed.q80, timed.rounds) == (3, 6, 9, 11)
