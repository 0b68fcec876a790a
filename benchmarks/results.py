# SPDX-License-Identifier: MIT
"""What a run leaves behind: a file of JSON lines, one schema for layers, networks, launch plans and kernels.

    {"schema": 2, "environment": {...}, "columns": ["case", ...]}    first
    ["resnet50.layer1.n8", [8, 256, 56, 56], "eca", ...]             a row, written when it is measured
    {"check": "tests/kernels/test_cuda.py", "status": "done", ...}           what else was run, and how it ended

A run that is cut off loses the job in work and nothing else; one that goes on skips the rows that are there.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from .cases import BLOCK, VARIANTS, Job
from .timing import Timing

ROOT = Path(__file__).parents[1]
SCHEMA = 2

# The bytes model: how many feature maps each kind of work moves at least. Every GB/s in this project comes from here.
#
#     forward            read x, write y                    backward           read x, grad_y, write grad_x
#     residual_forward   read x, the residual, write y      residual_backward  read x, grad_y, write both gradients
#     training           forward, then backward             clone              read x, write its copy
MOVED = {"forward": 2, "backward": 3, "training": 5, "clone": 2}
MOVED |= {"residual_forward": 3, "residual_backward": 4, "residual_training": 7}
WITH_NORM = {"residual_forward": 3, "residual_training": 10}


@dataclass(frozen=True)
class Row:
    """One provider in one job: seconds per call as quantiles over ``rounds`` samples.

    Of a layer on a GPU q20 to q80 are of replayed graphs, ``launched`` of calls that Python launches one by one,
    ``host`` what Python and the driver need for one; seconds. Of a network ``case`` is its name, ``shape`` that of its
    input, ``variant`` ``"eager"`` or ``"compiled"``, ``dtype`` that of mixed precision.
    """

    case: str
    shape: tuple[int, ...]
    variant: str
    phase: str
    dtype: str
    layout: str
    provider: str
    q20: float
    q50: float
    q80: float
    rounds: int
    launched: float | None = None
    host: float | None = None
    peak_bytes: int | None = None

    @property
    def job(self) -> tuple[Any, ...]:
        """What the rows measured together have in common."""
        return (self.case, self.shape, self.variant, self.phase, self.dtype, self.layout)

    @property
    def timing(self) -> Timing:
        return Timing(self.q20, self.q50, self.q80, self.rounds)

    @property
    def map_bytes(self) -> int:
        """Of one feature map."""
        return torch.Size(self.shape).numel() * int(getattr(torch, self.dtype).itemsize)

    @property
    def bytes(self) -> int:
        """The least that this work moves; gates (C numbers per sample) and signs (a bit per element) do not count."""
        moved = MOVED | (WITH_NORM if self.variant == BLOCK else {})
        return moved["clone" if self.provider == "clone" else self.phase] * self.map_bytes

    @property
    def gb_per_s(self) -> float:
        """That floor over the median time, with 1 GB = 10^9 bytes."""
        return self.bytes / self.q50 / 1e9


COLUMNS = tuple(column.name for column in dataclasses.fields(Row))


def make_row(job: Job, provider: str, timing: Timing, **facts: Any) -> Row:
    """The row of a layer."""
    what = (job.case.name, job.case.shape, job.variant, job.phase, job.dtype, job.layout)
    return Row(*what, provider, *dataclasses.astuple(timing), **facts)


@dataclass(frozen=True)
class Check:
    """What was run and how it ended: ``done``, ``failed``, ``refused`` (by a peer), ``not here``, ``out of time``."""

    check: str
    status: str
    note: str = ""
    seconds: float = 0.0


_TYPES = {kind: get_type_hints(kind) for kind in (Row, Check)}


@dataclass
class Results:
    """A run: where it was measured (environment.py), its rows and checks."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    path: Path | None = None  # the file that grows with it
    earlier: Sequence[Check] = ()  # checks that were there when this run began

    @property
    def failed(self) -> bool:
        """Whether anything failed in this run."""
        new = (check for check in self.checks if not any(check is old for old in self.earlier))
        return any(check.status == "failed" for check in new)

    def has(self, job: Job) -> bool:
        """Whether rows of all its providers are there; where providers are plans or kernels, whether any is."""
        like = make_row(job, "", Timing(0, 0, 0, 0)).job
        names = {row.provider for row in self.rows if row.job == like}
        refused = {check.check for check in self.checks if check.status == "refused"}
        names |= {name for name in job.providers if f"{job}: {name}" in refused}
        return names >= set(job.providers) or (job.variant not in VARIANTS and bool(names))

    def add(self, *found: Row | Check) -> None:
        """Keep these, of checks with one name the last; they are on disk when this returns."""
        for line in found:
            if isinstance(line, Row):
                self.rows.append(line)
            else:
                self.checks = [*(check for check in self.checks if check.check != line.check), line]
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(_text(line) + "\n" for line in found))

    def settle(self, name: str) -> None:
        """Say of a check that did not go well that all is done now."""
        if any(check.check == name for check in self.checks):
            self.add(Check(name, "done", "by a later run"))


def begin(path: Path | None, environment: dict[str, Any]) -> Results:
    """Results that grow in the file ``path``, or in memory; a file of an earlier run of these very sources goes on.

    ValueError where the file is another one: nothing of it is lost.
    """
    if path is None:
        return Results(environment)
    found = load(path) if path.exists() else Results(environment)
    keys = ("sources", "device", "torch", "threads", "settings", "quick", "dry")
    expect(path, found, {key: environment.get(key) for key in keys})
    write(path, found)  # without the part of a line that a cut-off run may have left
    return dataclasses.replace(found, path=path, earlier=tuple(found.checks))


def expect(path: Path, found: Results, here: Mapping[str, Any]) -> None:
    """ValueError if the results in a file are of another environment than that which goes on."""
    for key, now in here.items():
        if (was := found.environment.get(key)) != now:
            raise ValueError(f"{path} has results with {key} {was}, expected {now} to go on: choose another file")


def load(path: Path) -> Results:
    """Read a file of results; a last line that was cut off is left out. ValueError, naming the line, for any other."""
    number = 1
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = json.loads(lines[0]) if lines else {}
        if header["schema"] != SCHEMA:
            raise ValueError(f"schema {header['schema']!r}, not {SCHEMA}")
        found, columns = Results({**header["environment"]}), [*header["columns"]]
        for number, text in enumerate(lines[1:], 2):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                if number < len(lines):
                    raise
                break
            found.add(
                _made(Check, line) if isinstance(line, dict) else _made(Row, dict(zip(columns, line, strict=False)))
            )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: expected one of python -m benchmarks, got {error!r}") from error
    return found


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """A row or a check. TypeError for a value of another type than it has."""
    for name, known in _TYPES[kind].items():
        if name in values and not _fits(values[name], known):
            raise TypeError(f"{name} {values[name]!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _fits(value: Any, known: Any) -> bool:
    kinds = get_args(known) or (known,)
    if kinds == (int, ...):
        return isinstance(value, list) and all(_fits(size, int) for size in value)
    if type(value) in (int, float):
        return (float in kinds or type(value) in kinds) and 0 <= value < math.inf
    return type(value) in kinds


def show(make: Callable[..., Any], *paths: Path) -> Any:
    """What ``make`` makes of results in files. ValueError, naming them, where lines look right and make no sense."""
    found = [load(path) for path in paths]
    try:
        return make(*found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"expected what python -m benchmarks measured, got {error!r}"
        raise ValueError(f"{' or '.join(map(str, paths))}: {what}") from error


def write(path: Path, results: Results) -> None:
    """A whole file, so that no reader ever sees half of it."""
    header = {"schema": SCHEMA, "environment": results.environment, "columns": COLUMNS}
    write_whole(path, "\n".join([json.dumps(header), *map(_text, [*results.rows, *results.checks])]) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a text file at once."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sources() -> str:
    """A short name of the state of all that is built and measured: another state has another name."""
    return digest([*(ROOT / "csrc").rglob("*"), *(ROOT / "eca_cuda").rglob("*.py"), ROOT / "setup.py"])


def digest(files: Iterable[Path]) -> str:
    """Of their names and contents."""
    found = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _text(line: Row | Check) -> str:
    if isinstance(line, Check):
        return json.dumps(dataclasses.asdict(line))
    return json.dumps(_short([getattr(line, name) for name in COLUMNS]))


def _short(values: Sequence[Any]) -> list[Any]:
    """Times to five digits, and nothing for what is unknown at the end."""
    short = [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]
    while short[-1] is None:
        short.pop()
    return short
