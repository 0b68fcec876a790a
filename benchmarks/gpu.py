# SPDX-License-Identifier: MIT
"""``make gpu``: build, test and measure on this machine's GPU, in minutes and without network access; docs/gpu.md.

Every command is a separate process, so that an illegal access ends that process only. Commands that only test or
compile run in parallel; commands that measure run alone. Output goes to ``log.txt``, results go to ``results.jsonl``,
and a later run continues that file.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from .results import ROOT, Check, digest, expect, load, sources, write

LIBRARY = ROOT / "eca_cuda" / f"_C{EXTENSION_SUFFIXES[0]}"
TESTS = ROOT / "tests"
PREPARED = ROOT / "build/gpu"  # made beforehand (make gpu-build): the library, the emulator's, what they are of
EMULATED = PREPARED / "libeca_cuda_emulated.so"

# Files of tests, side by side; all but those for a GPU alone choose their tests on it by name.
_FOR_A_GPU = ("cuda", "cuda_bits batch_invariance")
_ON_DEVICES = ("forward", "backward determinism", "nonfinite properties in_place", "gradcheck saved_memory errors")
_ON_DEVICES += ("amp lengths registration", "training", "compile compile_mode inductor export")


@dataclass(frozen=True)
class Command:
    """A process to run; it is ended after ``seconds``."""

    name: str
    arguments: tuple[str, ...]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    needs: str = ""  # a program that may be missing


def _inner(what: str, seconds: float, out: Path, dry: bool, *more: str) -> Command:
    """``python -m benchmarks gpu --inner``: see cli.py. Layers and plans stop by themselves before the limit."""
    options = ("--out", str(out), *more, *(["--dry"] if dry else []))
    arguments = (sys.executable, "-m", "benchmarks", "gpu", "--inner", what, *options)
    return Command(" ".join((what, *more)), arguments, seconds)


def _test_file(name: str) -> str:
    """A path from the root; tests are named without their folder."""
    (path,) = TESTS.rglob(f"test_{name}.py")
    return path.relative_to(TESTS.parent).as_posix()


def _tests(dry: bool) -> list[Command]:
    def test(files: str, *options: str) -> Command:
        paths = [_test_file(name) for name in files.split()]
        quiet = ("-q", "-rfE", "-p", "no:cacheprovider", "--maxfail=20", "--tb=short")
        emulated = {"ECA_CUDA_EMULATED_LIBRARY": str(EMULATED)} if fits() and EMULATED.exists() else {}
        return Command(f"tests {files}", (sys.executable, "-m", "pytest", *quiet, *options, *paths), 80, emulated)

    if dry:  # on the emulated device
        return [test("gradcheck", "-k", "emulated-eca-k1"), test("forward", "-k", "emulated and every_shape and 7x7")]
    return [*(test(files) for files in _FOR_A_GPU), *(test(files, "-k", "cuda") for files in _ON_DEVICES)]


def _sanitizers(dry: bool) -> list[Command]:
    program = (sys.executable, "tests/kernels/small_calls.py")
    if dry:
        return [Command("small calls", (*program, "--dry"), 60)]

    def check(tool: str) -> Command:
        # Failed API calls are no errors of our kernels: torch makes some on purpose, and ours raise exceptions.
        quiet = ("--report-api-errors", "no") if tool == "memcheck" else ()
        arguments = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *quiet, *program)
        # Without torch's caching allocator the sanitizer sees the bounds of every tensor.
        return Command(tool, arguments, 230, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, "compute-sanitizer")

    return [check(tool) for tool in ("memcheck", "synccheck", "racecheck")]


def steps(step: str, out: Path, dry: bool) -> list[list[Command]]:
    """Groups of commands. The groups run one after another, the commands of a group in parallel."""

    def inner(what: str, seconds: float, *more: str) -> Command:
        return _inner(
            what, 3 * seconds if dry else seconds, out, dry, *more
        )  # it runs on two cores, beside other tests

    shards = 2 if dry else 8
    if step == "networks":
        warm = [inner("warm-networks", 100, "--shard", f"{i}/{shards}") for i in range(shards)]
        return [[inner("networks", 50)], warm, [inner("networks-compiled", 85)]]
    if step == "compiled":
        warm = [inner("warm-layers", 100, "--shard", f"{i}/{shards}") for i in range(shards)]
        return [warm, [inner("layers-compiled", 120)]]
    if step == "profile":
        return [[inner("ncu-calls", 60) if dry else Command("ncu", inner("ncu", 90).arguments, 90, needs="ncu")]]
    if step == "sanitize":
        return [_sanitizers(dry)]
    return [[inner("layers", 50)], [inner("kernels", 20)], [inner("sweep", 35)], _tests(dry)]


STEPS = ("main", "networks", "compiled", "profile", "sanitize", "build")


def main(options: argparse.Namespace) -> int:
    """Run a step; returns the exit status: 0, or 1 if anything failed."""
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.step == "build":
        return prepare()
    path = out / "results.jsonl"
    if path.exists():
        expect(path, load(path), {"sources": sources(), "dry": options.dry})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the started processes are ended too
    started, checks = time.monotonic(), [use_or_build(out, options.dry)]
    built = checks[0].status == "done"
    for group in steps(options.step, out, options.dry) if built else ():
        checks += run_together(group, out)
        if path.exists():
            found = load(path)
            found.add(*checks)
            write(path, found)
    if built and path.exists():
        from . import tables, terminal  # these import eca_cuda, which is built only now

        terminal.show(*tables.for_terminal(load(path)))
    print(f"\n{options.step} in {time.monotonic() - started:.0f} s, {path}:")
    for check in checks:
        last = check.note.strip().splitlines()[-1:] or [""]
        print(f"  {check.check}: {check.status}, {check.seconds:.0f} s  {last[0][:150]}")
    return int(any(check.status == "failed" for check in checks))


def built_of() -> str:
    """A digest of the sources, and this Python's ABI: what the library depends on."""
    folders = [*(ROOT / "csrc").rglob("*"), *(ROOT / "tests/emulator").rglob("*.[ch]*")]
    return f"{digest([*folders, ROOT / 'setup.py', ROOT / 'eca_cuda/_version.py'])} {EXTENSION_SUFFIXES[0]}"


def fits() -> bool:
    """Whether the prepared build was made from these sources, for this Python."""
    stamp = PREPARED / "sources"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == built_of()


def prepare() -> int:
    """``make gpu-build``: builds both libraries into one folder, which can be copied to the machine with the GPU."""
    environment = {**os.environ, "ECA_CUDA_BUILD": "cuda"}
    subprocess.run([sys.executable, "setup.py", "build_ext", "--inplace"], cwd=ROOT, env=environment, check=True)
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, "-c", "import emulated; print(emulated.build_library())"]
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    shutil.rmtree(PREPARED, ignore_errors=True)
    PREPARED.mkdir(parents=True)
    shutil.copy(LIBRARY, PREPARED)
    shutil.copy(built.strip(), EMULATED)
    (PREPARED / "sources").write_text(built_of(), encoding="utf-8")
    print(f"{PREPARED}: for {EXTENSION_SUFFIXES[0]}; copy this folder to the machine with the GPU")
    return 0


def use_or_build(out: Path, dry: bool) -> Check:
    """Install the prepared library, or build one; a dry run uses an existing one."""
    if dry and LIBRARY.exists():
        return Check("build", "done", "dry run: the existing library")
    if fits():
        shutil.copy(PREPARED / LIBRARY.name, LIBRARY)
        return Check("build", "done", "prepared by make gpu-build")
    kind = {"ECA_CUDA_BUILD": "cpu" if dry else "cuda"}
    return run_together([Command("build", (sys.executable, "setup.py", "build_ext", "--inplace"), 240, kind)], out)[0]


def run_together(commands: Sequence[Command], out: Path) -> list[Check]:
    """Run commands in parallel and return their outcomes; each output is appended to the log when its command ends."""
    started = time.monotonic()
    path, until = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", started - 8
    own = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path.rstrip(os.pathsep)}
    running, checks = [], []
    for number, command in enumerate(commands):
        if command.needs and not shutil.which(command.needs):
            checks.append(Check(command.name, "not here", f"{command.needs} is not on PATH"))
            continue
        log = out / f"log.{number}"
        with log.open("wb") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
            env = own | {"BENCHMARKS_UNTIL": str(until + command.seconds)} | command.environment
            process = subprocess.Popen(command.arguments, cwd=ROOT, env=env, start_new_session=True, **streams)
        running.append((command, process, log))
    try:
        for command, process, log in running:
            try:
                status: int | None = process.wait(max(0.1, started + command.seconds - time.monotonic()))
            except subprocess.TimeoutExpired:
                status = None
            _end(process)
            text = log.read_text(encoding="utf-8", errors="replace")
            log.unlink()
            seconds = round(time.monotonic() - started, 1)
            with (out / "log.txt").open("a", encoding="utf-8") as whole:
                title = f"== {command.name}: {status}, {seconds} s: {' '.join(command.arguments)}"
                whole.write(f"{title}\n{text[-1 << 20 :]}\n")
            note, outcome = "\n".join(text.splitlines()[-12:]), _outcome(command, status, text)
            checks.append(Check(command.name, outcome, note, seconds))
            print(f"-- {command.name}: {outcome}, {seconds} s", flush=True)
    finally:  # after Ctrl-C too
        for process in (process for _, process, _ in running if process.poll() is None):
            _end(process)
    return checks


def _outcome(command: Command, status: int | None, text: str) -> str:
    if command.name.startswith("tests ") and status in (0, 5) and not re.search(r"\b[1-9]\d* passed\b", text):
        return "not here"  # pytest returns 0 if all tests were skipped, and 5 if none was selected
    return {0: "done", None: "out of time"}.get(status, "failed")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process and its children: it leads its own process group."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
