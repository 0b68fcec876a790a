# SPDX-License-Identifier: MIT
"""``python -m benchmarks.gpu.show FILES``: the tables of what runs have found so far, the most important last."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..tables import table_of_goals
from ..terminal import show
from . import tables
from .fold import fold


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    try:
        found = fold([path for path in options.files if path.exists()], rehearsed=options.dry)
    except ValueError as error:
        print(error)  # steps that measure nothing have nothing to show
        return 0
    made = (
        tables.sweep,
        tables.profiled,
        tables.refusals,
        tables.launches,
        tables.limit,
        tables.shares,
        tables.other_layers,
        tables.two_phase,
        tables.networks,
        tables.layers,
    )
    shown = [table for make in made if (table := make(found)).rows]
    show(tables.GPU_TABLES["gpu-environment"](found), *shown, table_of_goals("Goals", tables.goals(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
