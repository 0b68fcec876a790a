# SPDX-License-Identifier: MIT
"""Dry runs of ``make gpu``: every step, failing commands, ncu's output, and the sweep of launch plans."""

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_benchmark_results import rows_of

pytest.importorskip("timm")

from benchmarks import cli, gpu, profile, results, sweep
from benchmarks.cases import Case, Job, resnet50
from benchmarks.clock import DRY, Cpu
from benchmarks.correctness import Expected
from benchmarks.gpu import Command, run_together
from benchmarks.results import Results
from benchmarks.sweep import TWO_PHASE, Choice, following, taken
from benchmarks.timing import Timing
from eca_cuda import load_tuning

ROOT = Path(__file__).parents[2]
LAYERS, SHARDS = ("layers", "kernels", "sweep"), ("--shard 0/2", "--shard 1/2")


def python(name: str, code: str, seconds: float = 60, needs: str = "") -> Command:
    return Command(name, (sys.executable, "-c", code), seconds, needs=needs)


@pytest.mark.parametrize(
    ("step", "names", "variants"),
    [
        ("main", [*LAYERS, "tests gradcheck", "tests forward"], {"eca", "eca kernels", "eca plans"}),
        ("networks", ["networks", *(f"warm-networks {i}" for i in SHARDS), "networks-compiled"], {"eager", "compiled"}),
        ("compiled", [*(f"warm-layers {i}" for i in SHARDS), "layers-compiled"], {"eca"}),
        ("profile", ["ncu-calls"], None),
        ("sanitize", ["small calls"], None),
    ],
)
def test_a_dry_run_of_make_gpu_runs_every_step(
    step: str, names: list[str], variants: set[str] | None, tmp_path: Path
) -> None:
    command = ["make", "gpu", "DRY=1", f"OUT={tmp_path}", f"PYTHON={sys.executable}", f"STEP={step}"]
    done = subprocess.run(command[: 5 + (step != "main")], cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    shown, log = done.stdout[-12_000:], (tmp_path / "log.txt").read_text()  # callers may get only the tail
    assert f"\n{step} in " in shown and all(f"\n  {name}: done, " in shown for name in ("build", *names))
    assert log.count("\n== ") + 1 == len(names) and f"== {names[0]}: 0, " in log
    assert step != "sanitize" or "72 calls forward and backward" in log
    files = {"log.txt"} | ({"results.jsonl"} if variants else set()) | ({"tuning.json"} if step == "main" else set())
    assert {path.name for path in tmp_path.iterdir()} == files
    if variants:
        found = results.load(tmp_path / "results.jsonl")
        assert found.environment["dry"] is True and {row.variant for row in found.rows} == variants
        assert [(check.check, check.status) for check in found.checks] == [(name, "done") for name in ("build", *names)]
        assert all(" passed" in check.note for check in found.checks if check.check.startswith("tests"))
        assert "What ran and how it ended" in shown and {"eager", "compile"} & {row.provider for row in found.rows}
    if step == "main":
        assert "6/6 resnet50.layer4.n2 eca residual_backward" in log and "Launch plans" in shown
        assert load_tuning(tmp_path / "tuning.json") >= 0 == load_tuning(None)


@pytest.mark.parametrize("what", [*LAYERS, "networks"])
def test_a_second_run_skips_finished_jobs(what: str, tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        assert cli.main(["gpu", "--inner", what, "--dry", "--out", str(tmp_path)]) == 0
        found.append(results.load(tmp_path / "results.jsonl").rows)
    assert found[0] and found[0] == found[1]


@pytest.mark.parametrize("step", [step for step in gpu.STEPS if step != "build"])
def test_commands_name_what_exists(step: str, tmp_path: Path) -> None:
    for command in itertools.chain(*gpu.steps(step, tmp_path, dry=False)):
        files = [argument for argument in command.arguments if argument.endswith(".py")]
        assert all((ROOT / file).is_file() for file in files)
        if not files:
            options = cli._make_parser().parse_args(command.arguments[3:])
            assert (options.dry, options.out) == (False, tmp_path)
            assert command.arguments[:4] == (sys.executable, "-m", "benchmarks", "gpu")


def test_commands_run_in_parallel_and_a_failing_one_stops_nothing(tmp_path: Path) -> None:
    meet = "import pathlib; p = pathlib.Path({!r}); (p / '{}').touch()\nwhile not (p / '{}').exists(): pass"
    commands = [python("a", meet.format(str(tmp_path), "a", "b")), python("b", meet.format(str(tmp_path), "b", "a"))]
    commands += [python("bad", "print('why'); raise SystemExit(7)"), python("it", "", needs="no-such-program")]
    checks = {check.check: (check.status, check.note) for check in run_together(commands, tmp_path)}
    expected = {"it": ("not here", "no-such-program is not on PATH"), "bad": ("failed", "why")}
    assert checks == {**expected, "a": ("done", ""), "b": ("done", "")}
    assert "== bad: 7, " in (tmp_path / "log.txt").read_text() and not list(tmp_path.glob("log.?"))


def test_a_command_is_ended_in_time_with_its_children(tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(6); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    (check,) = run_together([python("it", code, seconds=2)], tmp_path)
    assert (check.status, check.note) == ("out of time", "begun")
    time.sleep(max(0.0, 7 - (time.monotonic() - start)))
    assert not (tmp_path / "late").exists()


SKIPPED = "import pytest\ndef test_b(): pytest.skip('why')\n"
TESTS = {"def test_a(): pass\n" + SKIPPED: "done", SKIPPED: "not here", "": "not here", "def test_c(): 1 / 0": "failed"}
TESTS |= {"import pytest\npytest.importorskip('no_such_module')": "not here", "import no_such_module": "failed"}


def test_a_command_of_tests_is_done_only_if_a_test_passed(tmp_path: Path) -> None:
    commands, pytest_on = [], (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    for number, text in enumerate(TESTS):
        path = tmp_path / f"test_{number}.py"
        path.write_text(text)
        commands.append(Command(f"tests {number}", (*pytest_on, str(path)), 60))
    assert [check.status for check in run_together(commands, tmp_path)] == list(TESTS.values())


def test_a_failing_command_gives_exit_status_1(tmp_path: Path, monkeypatch, capsys) -> None:
    def step(*groups: list[Command]) -> int:
        monkeypatch.setattr(gpu, "steps", lambda *_: groups)
        return cli.main(["gpu", "--dry", "--out", str(tmp_path)])

    path = tmp_path / "results.jsonl"
    found = results.load(ROOT / "benchmarks/results/cpu-networks.jsonl")
    for other in ({"sources": "others"}, {"dry": False}):
        found.environment |= {"sources": results.sources(), "dry": True, **other}
        results.write(path, found)
        with pytest.raises(SystemExit, match="2"):
            step([python("never", "")])
        assert "choose another file" in capsys.readouterr().err and not results.load(path).checks
    found.environment |= {"dry": True}
    results.write(path, found)
    path.write_text(path.read_text() + '["a line that was cut o')
    assert step([python("bad", "print('why'); 1 / 0")], [python("next", "")]) == 1
    shown = capsys.readouterr().out
    assert "  bad: failed, 0 s  ZeroDivisionError: division by zero" in shown and "  next: done, 0 s" in shown
    assert step([python("slow", "import time; time.sleep(9)", 0.1)], [python("it", "", needs="no-such-program")]) == 0
    checks = {check.check: check.status for check in results.load(path).checks}
    assert checks == {"bad": "failed", "next": "done", "build": "done", "slow": "out of time", "it": "not here"}


def test_a_prepared_library_is_used_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("csrc/a.cu", "setup.py", "_C.so", "p/_C.so", "p/emulated.so"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('built here')" if name == "setup.py" else name)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    for name, path in {"ROOT": "", "LIBRARY": "_C.so", "PREPARED": "p", "EMULATED": "p/emulated.so"}.items():
        monkeypatch.setattr(gpu, name, tmp_path / path)
    assert not gpu.fits() and gpu.use_or_build(tmp_path, dry=False).note == "built here"
    (tmp_path / "p/sources").write_text(gpu.built_of())
    assert gpu.use_or_build(tmp_path, dry=True).status == "done" and gpu.LIBRARY.read_text() == "_C.so"
    assert gpu.use_or_build(tmp_path, dry=False).status == "done" and gpu.LIBRARY.read_text() == "p/_C.so"
    assert gpu._tests(dry=False)[0].environment == {"ECA_CUDA_EMULATED_LIBRARY": str(gpu.EMULATED)}
    state = results.sources()
    for name in ("csrc/a.cu", "setup.py"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(before + "# new")
        assert not gpu.fits() and results.sources() != state
        (tmp_path / name).write_text(before)
    assert gpu.fits() and results.sources() == state
    monkeypatch.setattr(gpu, "EXTENSION_SUFFIXES", [".of-another-python.so"])
    assert not gpu.fits() and not gpu._tests(dry=False)[0].environment
    gpu.LIBRARY.unlink()
    assert cli.main(["gpu", "--dry", "--out", str(tmp_path)]) == 1  # a library that can't be built ends it
    assert (tmp_path / "log.txt").read_text().count("== ") == 2


def as_ncu_writes(*kernels: str) -> str:
    """ncu's table with two metrics and a rule, among other lines."""
    columns = '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Description"'
    rest = ('"Duration","us","1,101.31",""', '"Other","","7",""', '"","","","It is ""bound"", ncu says."')
    made = [f'"{i}","{kernel}","A section",{cells}' for i, kernel in enumerate(kernels) for cells in rest]
    return "\n".join(["==PROF== Connected", "a line of the program", columns, *made, "==WARNING== Note: clocks"])


KERNEL = "void eca::eca_backward_kernel<portable::EcaGate<float>, __half, 0>(OnePassArgs<BackwardCall>)"
TABLE = as_ncu_writes(KERNEL, "eca_parameter_gradients_kernel", *["void (anonymous namespace)::other<int>(int)"] * 9)


FAILS = [(TABLE, 9, {"failed", "done"}), ("==ERROR==", 0, {"failed"})]


@pytest.mark.parametrize(("says", "status", "expected"), [(TABLE, 0, {"done"}), *FAILS])
def test_ncu_is_asked_for_our_calls_and_its_figures_are_kept(says, status, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "said").write_text(says)
    (tmp_path / "ncu").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/said\nexit {status}\n')
    (tmp_path / "ncu").chmod(0o755)
    found = Results({})
    profile.ncu(found)
    assert {check.status for check in found.checks} == expected
    figures = [check.note for check in found.checks if "eca_backward_kernel" in check.check]
    assert figures == ["Duration 1,101.31 us"] * ("done" in expected)
    asked = (tmp_path / "asked").read_text()
    assert "--csv" in asked and "--section LaunchStats" in asked and "--profile-from-start off" in asked
    assert cli._make_parser().parse_args(asked.split("benchmarks ")[1].split()).inner == "ncu-calls"
    launches = profile.parse(says)
    assert launches[:1] == [{"kernel": "eca_backward_kernel", "Duration": "1,101.31 us", "Other": "7"}][: len(launches)]
    assert [launch["kernel"] for launch in launches[2:]] == ["other"] * (9 if "done" in expected else 0)


def plan_job(case: Case = sweep.DRY, phase: str = "forward", layout: str = "contiguous") -> Job:
    return Job(case, sweep.VARIANT, phase, "float16", layout, ("fused", "clone"))


@pytest.mark.parametrize(("phase", "layout"), [("forward", "contiguous"), ("backward", "channels_last")])
def test_the_plan_follows_rules(phase: str, layout: str) -> None:
    wanted = plan_job(resnet50(256)[1], phase, layout)
    before, rows = taken(wanted), layout == "channels_last"
    for other in (Choice(12, 4 if rows else 1, 256), TWO_PHASE):
        assert other in sweep.candidates(layout)
        with following(wanted, other):
            assert taken(wanted) == other != before
    with following(wanted, Choice(1, 1, 512)):  # a sample of 784 KB in one block
        assert taken(wanted) == before
    assert taken(wanted) == before and len({str(job) for job in sweep.jobs()}) == len(sweep.jobs())


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_every_candidate_is_checked_and_captured_under_its_own_rule(phase: str, monkeypatch) -> None:
    """Candidates that the plan does not accept, and its own choice, are skipped; a wrong one is not timed."""
    wanted, clock = plan_job(phase=phase), Cpu(DRY)
    own, right, wrong = taken(wanted), Choice(2, 1, 128), Choice(4, 1, 256)
    monkeypatch.setattr(sweep, "candidates", lambda layout: [right, wrong, own, Choice(16, 16, 128), TWO_PHASE])
    checked, captured, check, capture = [], [], Expected.check, clock.capture

    def checks(expected: Expected, got: dict[str, torch.Tensor]) -> None:
        checked.append(taken(wanted))
        ((name, result),) = got.items()
        assert name == {"forward": "y", "backward": "grad_x"}[phase]
        check(expected, {name: result * (1.01 if taken(wanted) == wrong else 1)})

    monkeypatch.setattr(Expected, "check", checks)
    monkeypatch.setattr(clock, "capture", lambda *args: captured.append(taken(wanted)) or capture(*args))
    *rows, failed = sweep.sweep(wanted, clock)
    assert checked == [own, right, wrong, TWO_PHASE] and captured == [own, own, right, TWO_PHASE]
    assert {row.provider for row in rows} == {f"own {own}", "clone", str(right), str(TWO_PHASE)}
    assert failed.check.endswith(f" {wrong}") and failed.status == "failed" and "of its budget" in failed.note
    assert taken(wanted) == own


def test_the_fastest_are_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts, asked = [Choice(blocks, 1, 128) for blocks in (1, 2, 3, 4, 6, 8)], []
    monkeypatch.setattr(sweep, "candidates", lambda layout: cuts)

    def timed(self: Cpu, captured: dict[str, Any], count: int, budget: Any) -> dict[str, Timing]:
        asked.append([name for name in captured if not name.startswith("own ")])
        return {name: Timing(1, len(captured) - i, 99, len(asked) + 1) for i, name in enumerate(captured)}

    monkeypatch.setattr(Cpu, "time", timed)
    found = sweep.sweep(plan_job(), Cpu(DRY))
    assert asked == [["clone", *map(str, cuts)], ["clone", *map(str, reversed(cuts[2:]))]]
    assert [row.provider for row in found if row.rounds == 1] == ["1/1/128", "2/1/128"]


def rules(noise: float, seconds: dict[str, float]) -> list[dict[str, Any]]:
    """The rules of one sweep; candidates that were timed once do not count."""
    of = {"variant": sweep.VARIANT, "layout": "channels_last", "spread": noise}
    looks = rows_of({"1/1/512": 0.1}, rounds=1, **of)
    return sweep.rules(Results({}, rows_of({"own 2/1/256": 1.0, "clone": 0.1, **seconds}, **of) + looks))


def test_rules_are_of_plans_that_are_faster_beyond_noise_and_by_2_percent() -> None:
    (rule,) = rules(0.01, {"8/2/512": 0.9, "4/1/128": 0.8})
    what = {"direction": "forward", "variant": "eca", "dtype": "float16", "layout": "rows"}
    assert rule == {**what, "c": 256, "s": 3136, "n": 256, "blocks": 4, "parts": 1, "threads": 128}
    cuts = [(0.0, 0.985), (0.05, 0.95), (0.0, 0.97)]
    assert [len(rules(noise, {"8/1/256": seconds})) for noise, seconds in cuts] == [0, 0, 1]
