# SPDX-License-Identifier: MIT
"""How time is taken: interleaved rounds, so that a slow minute of the machine hits every provider alike.

One *sample* is the mean over a few repetitions, so that reading the clock costs nothing; one *round* takes a sample of
every provider, in an order that rotates from round to round; the result is quantiles over the rounds.
"""

import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]  # how many seconds a call takes


@dataclass(frozen=True)
class Budget:
    """How long to measure; all times in seconds."""

    warmup: float  # per provider, after a first call that nobody times (it may compile)
    sample: float  # the least time of one sample
    total: float  # all samples of all providers together, unless min_rounds takes longer
    min_rounds: int
    max_rounds: int = 200


STANDARD = Budget(warmup=0.03, sample=2e-3, total=0.5, min_rounds=7)
QUICK = Budget(warmup=0.005, sample=1e-3, total=0.1, min_rounds=3)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the 20 %, 50 % and 80 % quantiles over ``rounds`` samples of ``repetitions`` calls each."""

    q20: float
    q50: float
    q80: float
    rounds: int
    repetitions: int


def verdict(old: Timing, new: Timing) -> str:
    """``"slower"`` or ``"faster"`` where the ranges from the 20 % to the 80 % quantile do not overlap, else empty."""
    if new.q20 > old.q80:
        return "slower"
    return "faster" if new.q80 < old.q20 else ""


def measure(
    calls: Mapping[str, Sequence[Call]],
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Timing]:
    """Time every provider in ``calls``: name -> the same call on each of several sets of tensors, used in turn.

    ``clock`` returns seconds. A device that works on while Python goes ahead needs a ``stopwatch`` of its own.
    """
    stopwatch = stopwatch or functools.partial(_by_clock, clock)
    streams = {name: itertools.cycle(sets) for name, sets in calls.items()}

    def sample(name: str, repetitions: int) -> float:
        stream = itertools.islice(streams[name], repetitions)

        def all_of_them() -> None:
            for call in stream:
                call()

        return stopwatch(all_of_them) / repetitions

    with _without_gc():
        per_call = {name: _warm_up(functools.partial(sample, name), budget.warmup) for name in calls}
        repetitions = {name: math.ceil(budget.sample / seconds) for name, seconds in per_call.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        rounds, end = 0, clock() + budget.total
        while rounds < budget.min_rounds or (rounds < budget.max_rounds and clock() < end):
            for name in _rotated(list(calls), rounds):
                samples[name].append(sample(name, repetitions[name]))
            rounds += 1
    return {name: _summary(samples[name], repetitions[name]) for name in calls}


def _by_clock(clock: Callable[[], float], call: Call) -> float:
    start = clock()
    call()
    return clock() - start


def _warm_up(sample: Callable[[int], float], seconds: float) -> float:
    """Run for ``seconds`` in ever longer samples; returns the least seconds per call of any of them."""
    sample(1)
    best = spent = sample(1)
    count = 1
    while spent < seconds:
        count *= 2
        per_call = sample(count)
        spent += per_call * count
        best = min(best, per_call)
    return best


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


def _summary(samples: list[float], repetitions: int) -> Timing:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(deciles[1], deciles[4], deciles[7], len(samples), repetitions)


@contextmanager
def _without_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
