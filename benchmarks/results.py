# SPDX-License-Identifier: MIT
"""What a run leaves behind: rows and the environment, as JSON on disk."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .cases import Case
from .plan import Job
from .timing import Timing
from .traffic import floor_bytes, gb_per_s

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class GpuFacts:
    """What only a GPU's row has: there the row's ``timing`` is of replayed CUDA graphs."""

    launched: Timing  # of the same calls, launched one by one from Python
    host: float  # seconds of the CPU per call
    peak_bytes: int  # the most that is held during a call beyond what was held before
    rotated_bytes: int  # of the maps that the calls use in turn


@dataclass(frozen=True)
class Row:
    """One provider in one job. ``bytes`` is the floor of ``traffic.py``; rates are at the median time."""

    case: Case
    variant: str
    phase: str
    dtype: str
    layout: str
    provider: str
    timing: Timing
    bytes: int
    gb_per_s: float
    share_of_clone: float | None  # of the rate of a clone measured in the same rounds
    gpu: GpuFacts | None = None

    @property
    def job(self) -> tuple[Any, ...]:
        """What the rows measured together have in common."""
        return (self.case, self.variant, self.phase, self.dtype, self.layout)


@dataclass(frozen=True)
class ModelRow:
    """One network in one phase (models.py): ``timing`` of a call on ``batch`` square images of ``side`` pixels.

    ``dtype`` is that of automatic mixed precision.
    """

    name: str
    phase: str
    batch: int
    side: int
    timing: Timing
    peak_bytes: int
    dtype: str = "float32"
    layout: str = "contiguous"
    compiled: bool = False


@dataclass(frozen=True)
class Results:
    """All rows of a run, the environment they were measured in (environment.py), and what else a GPU's run found."""

    environment: dict[str, Any]
    rows: Sequence[Row]
    models: Sequence[ModelRow] = ()
    findings: Mapping[str, Sequence[dict[str, Any]]] = field(default_factory=dict)


def make_rows(job: Job, itemsize: int, timings: dict[str, Timing]) -> list[Row]:
    """The rows of one job from the timings of its providers."""
    moved = {
        name: floor_bytes("clone" if name == "clone" else job.phase, job.case.elements, itemsize) for name in timings
    }
    rates = {name: gb_per_s(moved[name], timing.q50) for name, timing in timings.items()}
    limit = rates.get("clone")
    return [
        Row(
            job.case,
            job.variant,
            job.phase,
            job.dtype,
            job.layout,
            provider=name,
            timing=timing,
            bytes=moved[name],
            gb_per_s=rates[name],
            share_of_clone=rates[name] / limit if limit else None,
        )
        for name, timing in timings.items()
    ]


def save(results: Results, path: Path) -> None:
    """Write ``results`` as JSON."""
    document = {"schema_version": SCHEMA_VERSION, **asdict(results)}
    write_whole(path, json.dumps(document, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read what :func:`save` wrote; ValueError or OSError, naming the file, if that is not what it holds."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version}")
        rows, models = map(row_of, document["rows"]), map(model_row_of, document.get("models", []))
        return Results(document["environment"], list(rows), list(models), document.get("findings", {}))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the JSON of a benchmark run, got something else ({error!r})") from error


def row_of(values: dict[str, Any]) -> Row:
    """The row that ``dataclasses.asdict`` made ``values`` of."""
    gpu = values.get("gpu")
    facts = GpuFacts(**{**gpu, "launched": Timing(**gpu["launched"])}) if gpu else None
    return Row(**{**values, "case": Case(**values["case"]), "timing": Timing(**values["timing"]), "gpu": facts})


def model_row_of(values: dict[str, Any]) -> ModelRow:
    """The same for a network's row."""
    return ModelRow(**{**values, "timing": Timing(**values["timing"])})


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
