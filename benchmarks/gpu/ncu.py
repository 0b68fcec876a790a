# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.ncu CASE PHASE --out DIR``: a call of ours under ncu, its main figures into the record.

All that ncu says is printed too, for the log. Standard library only.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

from .record import DONE, Line, Record

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "SchedulerStats", "WarpStateStats")
# Of the metrics in these sections those that say most, by ncu's names for them.
FIGURES = ("Duration", "DRAM Throughput", "L2 Hit Rate", "Achieved Occupancy", "Registers Per Thread")
_COLUMNS = {"ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value"}


def parse(text: str) -> list[dict[str, Any]]:
    """The figures of every launch in the output of ``ncu --csv``, as it writes them; none where there is no table.

    Other lines may stand around the table: those of the program and those of ncu that begin with ``==``.
    """
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = csv.DictReader(lines[first:])
    found: dict[str, dict[str, Any]] = {}
    if _COLUMNS.issubset(rows.fieldnames or ()):
        for row in rows:
            if row["Metric Name"] in FIGURES and row["Metric Value"]:
                launch = found.setdefault(row["ID"], {"kernel": row["Kernel Name"], "figures": {}})
                launch["figures"][row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def main(case: str, phase: str, out: Path) -> int:
    """Returns the exit status: 1 where ncu fails, or where nothing that it says is understood."""
    # The clocks are left alone: the machine is lent. Only what lies between profiler's start and stop is read.
    options = ["--csv", "--clock-control", "none", "--profile-from-start", "off"]
    options += [word for section in SECTIONS for word in ("--section", section)]
    command = ["ncu", *options, sys.executable, "-m", "benchmarks.gpu.one_call", case, phase]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    print(done.stdout)
    call = f"{case} {phase}"
    launches = [{"call": call, **launch} for launch in parse(done.stdout)]
    if not launches:
        print("expected the table of ncu --csv, got what stands above")
        return 1
    Record(out).write(Line("profile", f"figures of {call}", DONE, found={"profiled": launches}))
    missing = [name for name in FIGURES if any(name not in launch["figures"] for launch in launches)]
    print(f"{len(launches)} launches; " + (f"not everywhere: {', '.join(missing)}" if missing else "all figures"))
    return int(done.returncode != 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("phase")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    sys.exit(main(chosen.case, chosen.phase, chosen.out))
