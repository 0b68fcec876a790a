# SPDX-License-Identifier: MIT
"""Makes one file of results of the lines that runs on a GPU left behind."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..results import Results, model_row_of, row_of
from .record import Line, read, sources_of

_SAME = ("torch", "eca_cuda")  # of the environment, in all files


def fold(paths: Sequence[Path], rehearsed: bool = False) -> Results:
    """All that the files hold; of a unit that several hold, the last. ValueError where they don't belong together.

    Rehearsed ones are refused too, unless it is said that they are.
    """
    every = [line for path in paths for line in read(path)]
    lines: dict[tuple[str, str], Line] = {}
    environments: list[dict[str, Any]] = []
    for line in every:
        if here := line.found.get("environment"):
            environments += here
        elif line.unit:
            lines[line.step, line.unit] = line
    built = sources_of(every)
    if len(built) > 1:
        raise ValueError(
            f"expected results of one state of csrc, eca_cuda and setup.py, got {', '.join(sorted(built))}"
        )
    environment = _common(environments, rehearsed)
    found: dict[str, list[dict[str, Any]]] = {"units": []}
    for line in lines.values():
        found["units"].append({key: value for key, value in asdict(line).items() if key not in ("found", "sources")})
        for kind, values in line.found.items():
            found.setdefault(kind, []).extend(values)
    rows, models = map(row_of, found.pop("rows", [])), map(model_row_of, found.pop("models", []))
    return Results(environment | {"sources": built.pop()}, list(rows), list(models), found)


def stem(environment: dict[str, Any]) -> str:
    """The name of a GPU's file: ``"h100-80gb-hbm3"``."""
    words = re.findall(r"[a-z0-9]+", environment["gpu"]["name"].lower())
    return "-".join(word for word in words if word != "nvidia")


def _common(environments: list[dict[str, Any]], rehearsed: bool) -> dict[str, Any]:
    if not environments:
        raise ValueError("expected results of a step that measures, got none")
    if not rehearsed and any(here["dry"] for here in environments):
        raise ValueError("expected results of a GPU, got those of a rehearsal (--dry), whose figures mean nothing")
    for what, values in (
        ("GPU", {here["gpu"]["name"] for here in environments}),
        *((name, {here[name] for here in environments}) for name in _SAME),
    ):
        if len(values) > 1:
            raise ValueError(f"expected results with one {what}, got {', '.join(sorted(values))}")
    return environments[-1]
