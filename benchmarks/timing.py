# SPDX-License-Identifier: MIT
"""Timing in interleaved rounds, so that a slow minute of the machine affects every provider alike.

One *sample* is the mean over enough repetitions to make the cost of reading the clock negligible. One *round* takes a
sample of every provider, in an order that rotates from round to round. The result is quantiles over the rounds.
"""

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Budget:
    """How long to measure; all times in seconds."""

    warmup: float  # per provider, after an untimed first call, which may compile
    sample: float  # the least time of one sample
    total: float  # of all samples of all providers, unless min_rounds takes longer
    min_rounds: int
    max_rounds: int = 200


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the 20 %, 50 % and 80 % quantiles over ``rounds`` samples."""

    q20: float
    q50: float
    q80: float
    rounds: int


def verdict(old: Timing, new: Timing) -> str:
    """``"slower"`` or ``"faster"`` where the ranges from the 20 % to the 80 % quantile do not overlap, else empty."""
    if new.q20 > old.q80:
        return "slower"
    return "faster" if new.q80 < old.q20 else ""


def by_clock(call: Call, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call that is complete when it returns."""
    start = clock()
    call()
    return clock() - start


def measure(
    calls: Mapping[str, Call],
    budget: Budget,
    stopwatch: Callable[[Call], float] = by_clock,
    *,
    per: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time all providers in interleaved rounds; each call does the work ``per`` times."""

    def sample(name: str, repetitions: int) -> float:
        def all_of_them() -> None:
            for _ in range(repetitions):
                calls[name]()

        return stopwatch(all_of_them) / repetitions

    with _without_gc():
        per_call = {name: _warm_up(functools.partial(sample, name), budget.warmup) for name in calls}
        repetitions = {name: math.ceil(budget.sample / seconds) for name, seconds in per_call.items()}
        samples: dict[str, list[float]] = {name: [] for name in calls}
        names, rounds, end = list(calls), 0, clock() + budget.total
        while rounds < budget.min_rounds or (rounds < budget.max_rounds and clock() < end):
            first = rounds % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(sample(name, repetitions[name]) / per)
            rounds += 1
    return {name: _summary(samples[name]) for name in calls}


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


def _summary(samples: list[float]) -> Timing:
    deciles = statistics.quantiles(samples, n=10, method="inclusive")
    return Timing(deciles[1], deciles[4], deciles[7], len(samples))


@contextmanager
def _without_gc() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
