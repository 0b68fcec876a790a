# SPDX-License-Identifier: MIT
"""``python -m benchmarks gpu``: run the steps, each within its time, and leave everything in one folder.

Nothing of eca_cuda or torch is imported here: the package is not built yet, and no fault of a GPU may end this process.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .record import DEVICE_LOST, DONE, FAILED, NOT_HERE, OUT_OF_TIME, ROOT, SHOWN, TIME_IS_UP, Line, Record
from .steps import STEPS, Command, Run, Step

_LOG_LIMIT = 8 << 20  # bytes; what a machine sends back is limited
_MARGIN = 15.0  # seconds that a measuring process has to end its unit before it is ended
_RESERVED = 20.0  # seconds for the last step, which shows what was found
_NOTHING_SELECTED = 5  # pytest's status where no test was selected; where all were skipped it is 0
_TAIL = 12  # lines of a command's output that are kept with its status


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0, or 1 if anything failed."""
    options = _parse(arguments)
    deadline = time.monotonic() + options.budget
    run = Run(options.out, options.dry, tuple(options.resume))
    try:
        record = Record(run.out, run.earlier)
        record.check(run.dry)
    except ValueError as error:
        raise SystemExit(f"make gpu: {error}") from error
    *others, last = STEPS
    chosen = [step for step in others if not options.step or step.name in options.step]
    due = [step for step in chosen if step.always or not record.has(step.name)]
    with (run.out / "log.txt").open("ab") as log:
        for number, step in enumerate(due):
            now = time.monotonic()
            share = step.share / sum(later.share for later in due[number:])
            _run_step(step, run, record, log, now + share * max(0.0, deadline - _RESERVED - now))
        _run_step(last, run, record, log, deadline)
    _summarize(record, [*chosen, last])
    return int(any(line.status == FAILED for line in record.known.values()))


def _run_step(step: Step, run: Run, record: Record, log: IO[bytes], deadline: float) -> None:
    start, statuses = time.monotonic(), []
    _say(log, f"== {step.name}: {step.what}; at most {max(0.0, deadline - start):.0f} s")
    for command in step.commands(run):
        if record.has(step.name, command.name) and not step.always:
            continue
        line = _run_command(step.name, command, log, deadline)
        record.write(line)
        statuses.append(line.status)
        _say(log, f"-- {step.name} {command.name}: {line.status}, {line.seconds:.1f} s")
    record.refresh()
    worst = max(statuses, key=[SHOWN, DONE, NOT_HERE, OUT_OF_TIME, FAILED].index, default=DONE)
    record.write(Line(step.name, "", worst, round(time.monotonic() - start, 1)))


def _run_command(step: str, command: Command, log: IO[bytes], deadline: float) -> Line:
    """Run it, again if it asks for that, and say what became of it."""
    shown = " ".join([*(f"{key}={value}" for key, value in command.environment.items()), *command.arguments])
    start = time.monotonic()

    def line(status: str, note: str) -> Line:
        return Line(step, command.name, status, round(time.monotonic() - start, 1), note)

    if command.shown:
        _say(log, shown)
        return line(SHOWN, shown)
    if command.needs and not shutil.which(command.needs):
        return line(NOT_HERE, f"{command.needs} is not on PATH; the command would be: {shown}")
    while True:
        left = deadline - time.monotonic()
        if left < 1:
            return line(OUT_OF_TIME, f"not begun: {shown}")
        status, tail = _execute(command, log, left)
        if command.tests and status in (0, _NOTHING_SELECTED) and not re.search(r"\b[1-9]\d* passed\b", tail):
            return line(NOT_HERE, tail)
        if status != DEVICE_LOST:
            named = {0: DONE, None: OUT_OF_TIME, TIME_IS_UP: OUT_OF_TIME}
            return line(named.get(status, FAILED), tail)


def _execute(command: Command, log: IO[bytes], seconds: float) -> tuple[int | None, str]:
    """The exit status, None if the time was up, and the last lines of the output, which goes to the log as it comes."""
    within = str(max(1.0, seconds - _MARGIN))
    arguments = [argument.replace("{seconds}", within) for argument in command.arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    tail: deque[bytes] = deque(maxlen=_TAIL)
    reader = threading.Thread(target=_copy, args=(process.stdout, log, tail), daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(seconds)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        _end(process)
    reader.join(5)
    return status, b"".join(tail).decode(errors="replace")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it has started: it is the leader of a group of its own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _copy(output: IO[bytes], log: IO[bytes], tail: "deque[bytes]") -> None:
    for text in output:
        tail.append(text)
        _write(log, text)


def _say(log: IO[bytes], text: str) -> None:
    _write(log, text.encode() + b"\n")


def _write(log: IO[bytes], text: bytes) -> None:
    if log.tell() < _LOG_LIMIT:
        log.write(text)
        log.flush()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()


def _summarize(record: Record, steps: Sequence[Step]) -> None:
    """The last words: all that a caller who sees only the end of the output needs."""
    print(f"\n{record.path}:")
    for step in steps:
        units = [line for (name, unit), line in record.known.items() if name == step.name and unit]
        counts = {status: sum(line.status == status for line in units) for status in (DONE, FAILED)}
        whole = record.known.get((step.name, ""))
        status = f"{whole.status}, {whole.seconds:.0f} s" if whole else "not run"
        print(f"  {step.name:12} {status}; {counts[DONE]} units done, {counts[FAILED]} failed")
        for line in units:
            if line.status in (FAILED, NOT_HERE):
                print(f"    {line.unit}: {line.note.strip().splitlines()[-1] if line.note.strip() else 'no output'}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description="Build, prove and measure on this machine's GPU. Steps: "
        + "; ".join(f"{step.name}: {step.what}" for step in STEPS),
    )
    parser.add_argument("--dry", action="store_true", help="rehearse it: no GPU, tiny shapes, nothing to be committed")
    parser.add_argument("--step", nargs="+", choices=names, metavar="NAME", help=f"only {', '.join(names)}")
    parser.add_argument("--budget", type=_seconds, default=540.0, metavar="SECONDS", help="in all (default: 540)")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument(
        "--resume", nargs="+", type=_file, default=[], metavar="FILE", help="results of earlier runs: not done again"
    )
    options = parser.parse_args(arguments)
    options.out = options.out.resolve()
    return options


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return seconds


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"expected a file, got {text!r}")
    return path.resolve()
