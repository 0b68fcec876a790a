# SPDX-License-Identifier: MIT
"""The steps of ``make gpu`` in the order in which they run, and the commands that each consists of.

Every command is a process of its own: an illegal access ends that process and nothing else. Standard library only.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..cases import TINY
from .record import NAME, REPORT


@dataclass(frozen=True)
class Command:
    """A process. ``{seconds}`` in an argument becomes the time that it may take."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""  # a program that may be missing
    tests: bool = False  # it is pytest, which may find nothing that can be tested here
    shown: bool = False  # only shown in a rehearsal


@dataclass(frozen=True)
class Run:
    """What is the same for all steps."""

    out: Path
    dry: bool
    earlier: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Step:
    """A step may take its part of the time that is left, by its ``share`` and those of the steps that follow.

    What it leaves over, these have. So the first ones, which all others need, ask for more than they will take.
    """

    name: str
    what: str
    share: float
    commands: Callable[[Run], list[Command]]
    always: bool = False  # also where an earlier run has done it: a fresh machine has nothing of it


PACKAGE = Path(__file__).parents[2] / "eca_cuda"


def _build(run: Run) -> list[Command]:
    """A rehearsal only needs something that can be imported: the CPU's kernels, if this Python has none yet."""
    is_built = any((PACKAGE / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
    arguments = (sys.executable, "setup.py", "build_ext", "--inplace")
    wanted = "cpu" if run.dry and not is_built else "cuda"
    return [Command("build", arguments, {"ECA_CUDA_BUILD": wanted}, needs="c++", shown=run.dry and is_built)]


# Files of tests, the most valuable first: those that are for a GPU; those whose tests run on every device; of these,
# the ones about what surrounds the kernels, which wait until the kernels have been measured.
_FOR_A_GPU = ("cuda", "cuda_bits", "batch_invariance")
_ON_DEVICES = ("forward", "backward", "determinism", "nonfinite")
_SUITE = ("gradcheck", "amp", "in_place", "lengths", "training", "saved_memory", "errors", "properties")
_SUITE += ("registration", "compile")


def _tests(file: str, *options: str) -> Command:
    quiet = ("-q", "-rfEs", "-p", "no:cacheprovider", "--maxfail=20")
    return Command(file, (sys.executable, "-m", "pytest", *quiet, *options, f"tests/test_{file}.py"), tests=True)


def _correctness(run: Run) -> list[Command]:
    if run.dry:  # the same kernels, on the emulated device
        return [_tests("forward", "-k", "emulated and every_shape and float32 and 7x7")]
    return [*(_tests(file) for file in _FOR_A_GPU), *(_tests(file, "-k", "cuda") for file in _ON_DEVICES)]


def _suite(run: Run) -> list[Command]:
    if run.dry:
        return [_tests("gradcheck", "-k", "emulated-eca-k1")]
    return [_tests(file, "-k", "cuda") for file in _SUITE]


def _sanitize(run: Run) -> list[Command]:
    program = (sys.executable, "-m", "benchmarks.gpu.small_calls")
    if run.dry:
        return [Command("small calls", (*program, "--dry"))]

    def check(tool: str) -> Command:
        # Without torch's caching allocator every tensor has borders that can be watched.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        # Calls to CUDA that fail are not our kernels': torch tries some on purpose, and ours become exceptions.
        quiet = ("--report-api-errors", "no") if tool == "memcheck" else ()
        arguments = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *quiet, *program)
        return Command(tool, arguments, alone, needs="compute-sanitizer")

    return [check(tool) for tool in ("memcheck", "synccheck", "racecheck")]


def _measure(name: str, environment: Mapping[str, str] | None = None) -> Callable[[Run], list[Command]]:
    def commands(run: Run) -> list[Command]:
        options = ["--out", str(run.out), "--seconds", "{seconds}", *(["--dry"] if run.dry else [])]
        options += [word for path in run.earlier for word in ("--resume", str(path))]
        return [Command(name, (sys.executable, "-m", "benchmarks.gpu.measure", name, *options), environment or {})]

    return commands


# The kernels that decide most, as (case, phase); ncu replays each launch once per group of counters.
PROFILED = (("layer1.n256", "forward"), ("layer4.n256", "forward"), ("layer1.n256", "backward"))


def _profile(run: Run) -> list[Command]:
    if run.dry:
        return [Command("one call", (sys.executable, "-m", "benchmarks.gpu.one_call", TINY.name, "forward", "--dry"))]

    def profile(case: str, phase: str) -> Command:
        program = (sys.executable, "-m", "benchmarks.gpu.ncu", f"resnet50.{case}", phase, "--out", str(run.out))
        return Command(f"{case} {phase}", program, needs="ncu")

    return [profile(*chosen) for chosen in PROFILED]


def _report(run: Run) -> list[Command]:
    dry = ("--dry",) if run.dry else ()
    files = [str(path) for path in (*run.earlier, run.out / NAME)]
    return [Command("tables", (sys.executable, "-m", "benchmarks.gpu.show", *dry, *files))]


STEPS = (
    Step("build", "the extension in place, for the GPU found", 40, _build, always=True),
    Step("correctness", "the tests on the GPU, against float64 and against the emulator", 30, _correctness),
    Step("sanitize", "memcheck, synccheck and racecheck on a few small calls", 2, _sanitize),
    Step("limit", "copies on the device, of all sizes", 3, _measure("limit")),
    Step("kernels", "layers: fused, eager, compiled, Triton, and a copy", 8, _measure("kernels")),
    Step("models", "whole networks with and without attention", 16, _measure("models")),
    Step("two-phase", "layers with the fallback kernels", 1, _measure("two-phase", {"ECA_CUDA_TWO_PHASE": "1"})),
    Step("profile", "ncu on the most important kernels", 1, _profile),
    Step("suite", "the other tests on the GPU: gradients, AMP, compile and all that surrounds the kernels", 1, _suite),
    Step("sweep", "other plans than the one that is chosen, layer by layer", 1, _measure("sweep")),
    Step(REPORT, "tables of all that was found", 1, _report, always=True),  # whichever steps were asked for
)
