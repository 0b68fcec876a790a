# SPDX-License-Identifier: MIT
"""Two runs side by side: what became faster, what became slower, and what is only noise."""

from .results import Results
from .tables import Table, duration
from .timing import Timing, verdict


def compare(old: Results, new: Results) -> Table:
    """Ratios new / old of the median times, slowest first; a mark where the ranges from 20 % to 80 % do not overlap.

    The rows of providers that are not ours (eager, clone) show how much the machine itself changed.
    """
    before = {(row.job, row.provider): row for row in old.rows}
    pairs = [(before[row.job, row.provider], row) for row in new.rows if (row.job, row.provider) in before]
    pairs.sort(key=lambda pair: _ratio(pair[0].timing, pair[1].timing), reverse=True)
    lines = [
        [
            f"{b.case.name} {b.variant} {b.phase} {b.dtype} {b.layout}",
            b.provider,
            duration(a.timing.q50),
            duration(b.timing.q50),
            f"{_ratio(a.timing, b.timing):.2f}",
            verdict(a.timing, b.timing),
        ]
        for a, b in pairs
    ]
    alone = len(old.rows) + len(new.rows) - 2 * len(pairs)
    title = f"New against old: {len(pairs)} rows in both runs, {alone} in one of them only"
    return Table(title, ["job", "provider", "old", "new", "new / old", "beyond noise"], lines, labels=2)


def _ratio(old: Timing, new: Timing) -> float:
    return new.q50 / old.q50
