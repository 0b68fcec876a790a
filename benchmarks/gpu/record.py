# SPDX-License-Identifier: MIT
"""What a run on a GPU leaves behind: a line of JSON for every unit of work, written when the unit ends.

A run that is cut off loses the unit in work and nothing else, and a later run goes on after it. Nothing but the
standard library here: this is read and written before the package is built.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NAME = "results.jsonl"
REPORT = "report"  # the step that shows what the others have found

# What became of a unit. A run that goes on tries again what is not done; of what is measured, not what has failed.
DONE, FAILED, NOT_HERE, SHOWN, OUT_OF_TIME = "done", "failed", "not here", "shown", "out of time"

# Exit statuses of a measuring process: units are left since the time was up, or since one of them has cost the process
# its device, so that another process has to go on. The last two are nobody else's: pytest ends with up to 6.
ALL_DONE, SOME_FAILED, TIME_IS_UP, DEVICE_LOST = 0, 1, 75, 76

Found = Mapping[str, Sequence[dict[str, Any]]]  # what was found out, by its kind


@dataclass(frozen=True)
class Line:
    """One unit of a step, or with an empty ``unit`` the whole step."""

    step: str
    unit: str
    status: str
    seconds: float = 0.0
    note: str = ""  # of a failure, or the last words of a command
    found: Found = field(default_factory=dict)
    sources: str = ""  # what sources() was


def sources() -> str:
    """A short name of the state of all that is built and measured: another state has another name."""
    digest = hashlib.sha256()
    files = [*(ROOT / "csrc").rglob("*"), *(ROOT / "eca_cuda").rglob("*.py"), ROOT / "setup.py"]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def sources_of(lines: Iterable[Line]) -> set[str]:
    """The sources of all that is done: a failure, and a report of whatever there is, are of no account."""
    return {line.sources for line in lines if line.status == DONE and line.step != REPORT}


def read(path: Path) -> list[Line]:
    """The lines of a file; a last one that was cut off is left out. ValueError, naming the file, for anything else."""
    lines = []
    texts = path.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            lines.append(Line(**json.loads(text)))
        except (json.JSONDecodeError, TypeError) as error:
            if number < len(texts):
                raise ValueError(f"{path}: expected results of make gpu, got line {number}: {error}") from error
    return lines


def is_dry(line: Line) -> bool | None:
    """Whether a line was written in a rehearsal; None where it does not say."""
    return next((bool(here["dry"]) for here in line.found.get("environment", ())), None)


class Record:
    """The file of a run, and what it and earlier ones have done already."""

    def __init__(self, folder: Path, earlier: Sequence[Path] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.sources = sources()
        self.known = {(line.step, line.unit): line for path in earlier for line in read(path)}
        if self.path.exists():  # without the part of a line that a cut-off run may have left
            self.path.write_text("".join(map(_text, read(self.path))), encoding="utf-8")
            self.refresh()

    def refresh(self) -> None:
        """Learn what other processes have written into the file."""
        if self.path.exists():
            self.known |= {(line.step, line.unit): line for line in read(self.path)}

    def check(self, dry: bool) -> None:
        """ValueError where a run can't go on after what is known: it was rehearsed or not, or is of other sources."""
        where = f"{self.path} or --resume: expected results of"
        if any(is_dry(line) not in (None, dry) for line in self.known.values()):
            raise ValueError(f"{where} the same kind, rehearsed or not")
        if others := sources_of(self.known.values()) - {self.sources}:
            here = f"csrc, eca_cuda and setup.py as they are now, {self.sources}"
            raise ValueError(f"{where} {here}, got {', '.join(sorted(others))}; begin anew with another --out")

    def has(self, step: str, unit: str = "") -> bool:
        """Whether this is done."""
        line = self.known.get((step, unit))
        return line is not None and line.status == DONE

    def write(self, line: Line) -> None:
        """Append a line, with the sources it is of; it is on disk when this returns."""
        line = replace(line, sources=self.sources)
        self.known[line.step, line.unit] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_text(line))


def _text(line: Line) -> str:
    return json.dumps(asdict(line)) + "\n"
