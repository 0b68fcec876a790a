# SPDX-License-Identifier: MIT
"""What the rows say: speed-ups, geometric means, and the goals of the project next to what was measured."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from .cases import TINY
from .results import Row

Group = dict[str, Row]  # provider -> its row, of one job

_LARGE_BYTES = 10_000_000  # above it a map misses the caches, and only then is a copy the limit


def groups(rows: Iterable[Row]) -> list[Group]:
    """Rows measured together, by provider, in the order in which they were measured."""
    by_job: dict[object, Group] = {}
    for row in rows:
        by_job.setdefault(row.job, {})[row.provider] = row
    return list(by_job.values())


def anyone(group: Group) -> Row:
    """Any row of a group, for what they all share."""
    return next(iter(group.values()))


def speedup(group: Group, base: str, provider: str = "fused") -> float | None:
    """How many times faster ``provider`` is than ``base``, by median; None if one of them was not measured."""
    if base not in group or provider not in group:
        return None
    return group[base].timing.q50 / group[provider].timing.q50


def mean_speedup(of: Iterable[Group], base: str) -> float | None:
    """The geometric mean of the speed-ups over ``base``, every case weighing the same; None if there is none."""
    values = [value for value in (speedup(group, base) for group in of) if value is not None]
    return statistics.geometric_mean(values) if values else None


def is_slower(group: Group, base: str = "eager") -> bool:
    """Whether ``fused`` is slower than ``base`` by more than noise: its 20 % quantile is above the base's 80 %."""
    return {base, "fused"} <= group.keys() and group["fused"].timing.q20 > group[base].timing.q80


def headline(rows: Iterable[Row], phase: str) -> list[Group]:
    """The groups that the headline is made of: ECA in ResNet-50, float32, contiguous."""
    chosen = [
        row
        for row in rows
        if row.case.name.startswith("resnet50.")
        and (row.variant, row.phase, row.dtype, row.layout) == ("eca", phase, "float32", "contiguous")
    ]
    return groups(chosen)


@dataclass(frozen=True)
class Goal:
    """One promise: ``measured`` (None if the run did not cover it) must reach ``target``, from above or from below."""

    what: str
    target: float
    measured: float | None
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


# phase -> base -> the least geometric mean of the speed-ups over it
_SPEEDUP_GOALS = {"forward": {"eager": 1.5, "compile": 1.4}, "training": {"eager": 2.8, "compile": 2.2}}
_OVERHEAD_GOALS_US = {"forward": 3, "training": 45}


def goals(rows: Iterable[Row]) -> list[Goal]:
    """The goals for a CPU, measured on what ``rows`` cover."""
    rows = list(rows)
    found = [
        Goal(f"{phase}, times faster than {base}", target, mean_speedup(headline(rows, phase), base))
        for phase, targets in _SPEEDUP_GOALS.items()
        for base, target in targets.items()
    ]
    shares = [
        group["fused"].share_of_clone
        for group in headline(rows, "forward")
        if "fused" in group and group["fused"].bytes > 2 * _LARGE_BYTES
    ]
    measured_shares = [share for share in shares if share is not None]
    found.append(Goal("forward, least share of clone's rate above 10 MB", 0.85, min(measured_shares, default=None)))
    compared = [group for group in groups(rows) if speedup(group, "eager") is not None]
    slower = sum(map(is_slower, compared)) if compared else None
    found.append(Goal("cases slower than eager by more than noise", 0, slower, at_least=False, unit=""))
    for phase, target in _OVERHEAD_GOALS_US.items():
        tiny = [r for r in rows if (r.case, r.variant, r.phase, r.provider) == (TINY, "eca", phase, "function")]
        microseconds = tiny[0].timing.q50 * 1e6 if tiny else None
        found.append(
            Goal(
                f"{phase}, one call of the function on a tiny tensor", target, microseconds, at_least=False, unit=" us"
            )
        )
    return found
