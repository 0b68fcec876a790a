# SPDX-License-Identifier: MIT
"""The results of a run: a file of JSON lines with one schema for layers, networks, launch plans and kernels.

    {"schema": 2, "environment": {...}, "columns": ["case", ...]}    first
    ["resnet50.layer1.n8", [8, 256, 56, 56], "eca", ...]             a row, written when it is measured
    {"check": "tests cuda", "status": "done", ...}                   another command, and how it ended

A run that is cut off loses only the current job; a run that continues the file skips the jobs in it.
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

# The fewest feature maps that each phase moves. Every GB/s in this project is computed from these.
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

    For a layer on a GPU, q20 to q80 are times of replayed graphs; ``Gpu.around`` defines ``launched`` and ``host``.
    For a network, ``case`` is its name, ``shape`` the shape of its input, ``variant`` ``"eager"`` or ``"compiled"``,
    and ``dtype`` the one of mixed precision.
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
        """The fields that rows measured together share."""
        return (self.case, self.shape, self.variant, self.phase, self.dtype, self.layout)

    @property
    def timing(self) -> Timing:
        return Timing(self.q20, self.q50, self.q80, self.rounds)

    @property
    def map_bytes(self) -> int:
        """The size of one feature map."""
        return torch.Size(self.shape).numel() * int(getattr(torch, self.dtype).itemsize)

    @property
    def bytes(self) -> int:
        """The fewest bytes that this work moves, without gates (C numbers per sample) and signs (a bit per element)."""
        moved = MOVED | (WITH_NORM if self.variant == BLOCK else {})
        return moved["clone" if self.provider == "clone" else self.phase] * self.map_bytes

    @property
    def gb_per_s(self) -> float:
        """``bytes`` over the median time, with 1 GB = 10^9 bytes."""
        return self.bytes / self.q50 / 1e9


COLUMNS = tuple(column.name for column in dataclasses.fields(Row))


def make_row(job: Job, provider: str, timing: Timing, **facts: Any) -> Row:
    """The row of a layer."""
    what = (job.case.name, job.case.shape, job.variant, job.phase, job.dtype, job.layout)
    return Row(*what, provider, *dataclasses.astuple(timing), **facts)


@dataclass(frozen=True)
class Check:
    """A command and how it ended: ``done``, ``failed``, ``refused`` (by a provider), ``not here``, ``out of time``."""

    check: str
    status: str
    note: str = ""
    seconds: float = 0.0


_TYPES = {kind: get_type_hints(kind) for kind in (Row, Check)}


@dataclass
class Results:
    """A run: its environment (environment.py), rows and checks."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    path: Path | None = None  # the file that rows and checks are appended to
    earlier: Sequence[Check] = ()  # checks of earlier runs in that file

    @property
    def failed(self) -> bool:
        """Whether anything failed in this run."""
        new = (check for check in self.checks if not any(check is old for old in self.earlier))
        return any(check.status == "failed" for check in new)

    def has(self, job: Job) -> bool:
        """Whether every provider of ``job`` has a row; if its providers are plans or kernels, whether any has."""
        like = make_row(job, "", Timing(0, 0, 0, 0)).job
        names = {row.provider for row in self.rows if row.job == like}
        refused = {check.check for check in self.checks if check.status == "refused"}
        names |= {name for name in job.providers if f"{job}: {name}" in refused}
        return names >= set(job.providers) or (job.variant not in VARIANTS and bool(names))

    def add(self, *found: Row | Check) -> None:
        """Add rows and checks, and append them to the file. A check replaces an earlier one of the same name."""
        for line in found:
            if isinstance(line, Row):
                self.rows.append(line)
            else:
                self.checks = [*(check for check in self.checks if check.check != line.check), line]
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(_text(line) + "\n" for line in found))

    def settle(self, name: str) -> None:
        """Mark an existing check as done."""
        if any(check.check == name for check in self.checks):
            self.add(Check(name, "done", "by a later run"))


def begin(path: Path | None, environment: dict[str, Any]) -> Results:
    """Results that are appended to the file ``path``, or kept in memory; an existing file is continued.

    ValueError, without changing the file, if it is from other sources or another environment.
    """
    if path is None:
        return Results(environment)
    found = load(path) if path.exists() else Results(environment)
    keys = ("sources", "device", "torch", "threads", "settings", "quick", "dry")
    expect(path, found, {key: environment.get(key) for key in keys})
    write(path, found)  # drops an incomplete last line
    return dataclasses.replace(found, path=path, earlier=tuple(found.checks))


def expect(path: Path, found: Results, here: Mapping[str, Any]) -> None:
    """ValueError if the environment of ``found`` differs from ``here``."""
    for key, now in here.items():
        if (was := found.environment.get(key)) != now:
            raise ValueError(f"{path}: expected results with {key} {now}, got {was}: choose another file")


def load(path: Path) -> Results:
    """Read a file of results, without an incomplete last line. ValueError, naming the line, for any other error."""
    number = 1
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        header = json.loads(lines[0]) if lines else {}
        if header["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {header['schema']!r}")
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
        raise ValueError(f"{path}, line {number}: expected a line of python -m benchmarks, got {error!r}") from error
    return found


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """A row or a check. TypeError for a value of a wrong type."""
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
    """Apply ``make`` to the results in files. ValueError, naming the files, if their values do not fit together."""
    found = [load(path) for path in paths]
    try:
        return make(*found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = error if isinstance(error, ValueError) else f"expected results of python -m benchmarks, got {error!r}"
        raise ValueError(f"{' or '.join(map(str, paths))}: {what}") from error


def write(path: Path, results: Results) -> None:
    """Write a whole file atomically."""
    header = {"schema": SCHEMA, "environment": results.environment, "columns": COLUMNS}
    write_whole(path, "\n".join([json.dumps(header), *map(_text, [*results.rows, *results.checks])]) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sources() -> str:
    """A digest of the sources that are built and measured."""
    return digest([*(ROOT / "csrc").rglob("*"), *(ROOT / "eca_cuda").rglob("*.py"), ROOT / "setup.py"])


def digest(files: Iterable[Path]) -> str:
    """A digest of the names and contents of files."""
    found = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file()):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _text(line: Row | Check) -> str:
    if isinstance(line, Check):
        return json.dumps(dataclasses.asdict(line))
    return json.dumps(_short([getattr(line, name) for name in COLUMNS]))


def _short(values: Sequence[Any]) -> list[Any]:
    """Round times to five digits, and drop None at the end."""
    short = [float(f"{value:.5g}") if isinstance(value, float) else value for value in values]
    while short[-1] is None:
        short.pop()
    return short
