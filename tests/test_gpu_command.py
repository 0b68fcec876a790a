# SPDX-License-Identifier: MIT
"""``make gpu``, rehearsed: every step runs, a fault of one stops no other, what is cut off goes on where it ended."""

import subprocess
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import command, record, steps
from benchmarks.gpu.record import DEVICE_LOST, DONE, FAILED, NOT_HERE, OUT_OF_TIME, SHOWN, Line, Record
from benchmarks.gpu.steps import Command, Step

ROOT = Path(__file__).parents[1]


def python(name: str, code: str, **options: object) -> Command:
    return Command(name, (sys.executable, "-c", code), **options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run steps made of these commands, and return the exit status and the lines by step and unit."""

    def runner(*arguments: str, budget: float = 60, **made: list[Command]):
        found = [Step(name, name, 1.0, lambda run, commands=commands: commands) for name, commands in made.items()]
        found.append(Step("report", "nothing", 1.0, lambda run: [], always=True))
        monkeypatch.setattr(command, "STEPS", found)
        status = command.main(["--out", str(tmp_path), "--budget", str(budget), *arguments])
        path = tmp_path / record.NAME
        return status, {(line.step, line.unit): line for line in record.read(path)} if path.exists() else {}

    return runner


# --- the whole path ------------------------------------------------------------------------------------------------


def test_the_rehearsal_runs_every_step_and_leaves_three_files(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    rehearse = [sys.executable, "-m", "benchmarks", "gpu", "--dry", "--out", str(tmp_path)]
    done = subprocess.run(rehearse, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "results.jsonl", "tuning.json"]
    lines = record.read(tmp_path / "results.jsonl")
    ends = {line.step: line.status for line in lines if not line.unit}
    assert ends == {step.name: DONE for step in steps.STEPS} | {"build": SHOWN}
    notes = {(line.step, line.unit): line.note for line in lines}
    assert "setup.py build_ext --inplace" in notes["build", "build"]
    assert "6 passed" in notes["correctness", "forward"]
    assert "72 calls forward and backward" in notes["sanitize", "small calls"]
    assert ("profile", "one call") in notes
    found = {kind for line in lines for kind in line.found}
    assert found == {"environment", "limit", "rows", "models", "sweep", "states", "refused"}
    providers = {row["provider"] for line in lines for row in line.found.get("rows", ())}
    assert providers == {"eager", "timm", "fused", "clone", "two-phase"}
    assert not [refusal for line in lines for refusal in line.found.get("refused", ())]
    end = done.stdout[-12_000:]  # all that a caller may see
    assert "correctness  done" in end and "Whole networks" in end and "Ours, of the rate of a copy" in end

    # A second run has nothing left to do; a report of either is refused.
    again = subprocess.run(rehearse, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "== limit" not in again.stdout and "== build" in again.stdout
    report = [sys.executable, "-m", "benchmarks", "report", str(tmp_path / "results.jsonl")]
    refused = subprocess.run([*report, "--results", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "got those of a rehearsal" in refused.stderr


def test_the_makefile_hands_on_what_it_is_given() -> None:
    shown = ["make", "-n", "gpu", "STEP=limit kernels", "BUDGET=100", "RESUME=a.jsonl", "DRY=1", "OUT=/tmp/x"]
    text = subprocess.run([*shown, "PYTHON=py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    words = text.replace("\\\n", " ").split()
    expected = "py -m benchmarks gpu --out /tmp/x --step limit kernels --budget 100 --resume a.jsonl --dry"
    assert words == expected.split()


def test_nothing_that_must_be_built_first_is_imported() -> None:
    code = "import sys; sys.argv[1:] = ['gpu', '--help']\ntry: import benchmarks.__main__\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'eca_cuda', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "correctness" in done.stdout


# --- steps ---------------------------------------------------------------------------------------------------------


def test_a_failing_command_stops_nothing(run, capsys) -> None:
    commands = [python("bad", "print('why'); raise SystemExit(7)"), python("good", "print('fine')")]
    status, lines = run(first=commands, second=[python("last", "")])
    assert status == 1
    assert {unit: line.status for unit, line in lines.items()} == {
        ("first", "bad"): FAILED,
        ("first", "good"): DONE,
        ("first", ""): FAILED,
        ("second", "last"): DONE,
        ("second", ""): DONE,
        ("report", ""): DONE,
    }
    assert lines["first", "bad"].note == "why\n"
    assert "    bad: why" in capsys.readouterr().out.splitlines()


def test_a_program_that_is_missing_is_recorded_with_the_command(run) -> None:
    status, lines = run(only=[python("it", "", needs="no-such-program"), python("shown", "1/0", shown=True)])
    assert status == 0
    assert lines["only", "it"].status == NOT_HERE and "no-such-program is not on PATH" in lines["only", "it"].note
    assert lines["only", "shown"].status == SHOWN and "1/0" in lines["only", "shown"].note


def test_a_command_is_ended_in_time_with_all_that_it_has_started(run, tmp_path: Path) -> None:
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    status, lines = run(budget=22, slow=[python("it", code), python("next", "")])
    assert status == 0
    assert lines["slow", "it"].status == OUT_OF_TIME and lines["slow", "it"].note == "begun\n"
    assert lines["slow", "next"].status == OUT_OF_TIME and "not begun" in lines["slow", "next"].note
    time.sleep(max(0.0, 5 - (time.monotonic() - start)))
    assert not (tmp_path / "late").exists()


def test_a_process_that_has_lost_its_device_is_started_again(run, tmp_path: Path) -> None:
    counter = tmp_path / "starts"
    code = f"import sys; f = open({str(counter)!r}, 'a+'); f.write('x'); f.seek(0); n = len(f.read())\n"
    code += f"sys.exit({DEVICE_LOST} if n < 3 else 0)"
    status, lines = run(only=[python("it", code)])
    assert (status, counter.read_text(), lines["only", "it"].status) == (0, "xxx", DONE)


PASSES, FAILS, SKIPPED = (
    "def test_gpu_a(): pass\n",
    "def test_gpu_b(): 1 / 0\n",
    "import pytest\ndef test_gpu_c(): pytest.skip('why')\n",
)


@pytest.mark.parametrize(
    ("files", "status", "words"),
    [
        ({"test_it.py": PASSES + SKIPPED}, DONE, "1 passed, 1 skipped"),
        ({"test_it.py": SKIPPED}, NOT_HERE, "test_it.py:2: why"),
        ({"test_it.py": "import pytest\npytest.importorskip('no_such_module')\n"}, NOT_HERE, "no_such_module"),
        ({"test_it.py": "def test_other(): pass"}, NOT_HERE, "1 deselected"),
        ({"test_it.py": FAILS + SKIPPED}, FAILED, "ZeroDivisionError"),
        ({"test_it.py": PASSES, "conftest.py": "import no_such_module"}, FAILED, "No module named 'no_such_module'"),
    ],
    ids=["some skipped", "all skipped", "a module is missing", "none selected", "one fails", "no test can run"],
)
def test_tests_are_done_only_where_something_was_tested(run, tmp_path, files, status, words) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    options = ("-q", "-rfEs", "-p", "no:cacheprovider", "-k", "gpu_a or gpu_b or gpu_c")  # no part of a folder's name
    arguments = ("-m", "pytest", *options, str(tmp_path / "test_it.py"))
    _, lines = run(only=[Command("it", (sys.executable, *arguments), tests=True)])
    assert lines["only", "it"].status == status and words in lines["only", "it"].note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_tests_are_not_here(run, tmp_path: Path, capsys) -> None:
    def made_of(run: steps.Run) -> list[Command]:
        return [*steps._correctness(run), *steps._suite(run)]

    chosen = [made for made in made_of(steps.Run(tmp_path, dry=False)) if made.name in ("cuda", "in_place")]
    status, lines = run(only=chosen)
    assert status == 0 and lines["only", ""].status == NOT_HERE
    assert "no CUDA device" in lines["only", "cuda"].note and "deselected" in lines["only", "in_place"].note
    assert "    cuda: 45 skipped" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(run, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    mark = python("it", f"open({str(marks)!r}, 'a').write('x')")
    run(only=[mark])
    run(only=[mark])
    run("--step", "only", only=[mark])
    assert marks.read_text() == "x"
    earlier = tmp_path / "earlier.jsonl"
    (tmp_path / record.NAME).rename(earlier)
    run("--resume", str(earlier), only=[mark])
    assert marks.read_text() == "x"


def test_what_has_failed_is_tried_again(run, tmp_path: Path) -> None:
    repaired = tmp_path / "repaired"
    it = python("it", f"import pathlib; assert pathlib.Path({str(repaired)!r}).exists(), 'ninja: not found'")
    status, lines = run(only=[it])
    assert (status, lines["only", ""].status) == (1, FAILED)
    repaired.touch()
    status, lines = run(only=[it])
    assert (status, lines["only", "it"].status, lines["only", ""].status) == (0, DONE, DONE)


def test_results_of_other_sources_are_not_continued(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed with them is tried again with these; what is done can't be a part of the same results."""
    monkeypatch.setattr(record, "sources", lambda: "before")
    run(only=[python("it", "1 / 0")])
    monkeypatch.setattr(record, "sources", lambda: "after")
    _, lines = run(only=[python("it", "")])
    assert lines["only", "it"].status == DONE and lines["only", "it"].sources == "after"
    monkeypatch.setattr(record, "sources", lambda: "later")
    with pytest.raises(SystemExit, match=r"as they are now, later, got after; begin anew with another --out"):
        run(only=[python("it", "")])


def test_other_sources_have_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("csrc/cuda/a.cu", "eca_cuda/b.py", "eca_cuda/_C.so", "setup.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    names = [record.sources()]
    for name in ("csrc/cuda/a.cu", "eca_cuda/b.py", "setup.py"):
        (tmp_path / name).write_text("new")
        names.append(record.sources())
    (tmp_path / "csrc/cuda/a.cu").rename(tmp_path / "csrc/cuda/c.cu")
    names.append(record.sources())
    assert len(set(names)) == 5
    (tmp_path / "eca_cuda/_C.so").write_text("built")
    assert record.sources() == names[-1]


def test_a_rehearsal_is_not_continued_by_a_measurement(run, tmp_path: Path) -> None:
    Record(tmp_path).write(Line("limit", "environment", DONE, found={"environment": [{"dry": True}]}))
    with pytest.raises(SystemExit, match="expected results of the same kind"):
        run(only=[])


def test_the_log_is_bounded(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LOG_LIMIT", 1000)
    run(only=[python("it", "for i in range(1000): print('x' * 50)")])
    assert 900 < (tmp_path / "log.txt").stat().st_size < 1100


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budget", "0"], "expected a number of seconds above 0, got '0'"),
        (["--step", "nothing"], "choose from"),
        (["--resume", "/nowhere"], "expected a file, got '/nowhere'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], expected: str, capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert expected in capsys.readouterr().err


# --- time ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The seconds that each step is given, and takes up unless told how many it needs, by a clock that never waits."""

    def runner(*names: str, needs: dict[str, float] | None = None) -> dict[str, float]:
        now, found = [0.0], {}

        def execute(step: Step, run: object, record: Record, log: object, deadline: float) -> None:
            found[step.name] = deadline - now[0]
            now[0] += min(found[step.name], (needs or {}).get(step.name, deadline))

        monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(command, "_run_step", execute)
        command.main(["--out", str(tmp_path), *(["--step", *names] if names else [])])
        return found

    return runner


def test_a_step_alone_has_all_the_time(given) -> None:
    assert given("correctness") == {"correctness": 520, "report": 20}


def test_time_is_divided_among_the_chosen_steps_and_none_is_left_without(given) -> None:
    assert given("two-phase", "profile") == {"two-phase": 260, "profile": 260, "report": 20}
    assert given("kernels", "models")["models"] == pytest.approx(520 * 16 / 24)
    every = given()
    assert list(every) == [step.name for step in steps.STEPS]
    assert min(every.values()) > 3 and sum(every.values()) == pytest.approx(540)


def test_what_a_step_leaves_over_later_ones_have(given) -> None:
    assert given("two-phase", "profile", needs={"two-phase": 10})["profile"] == 510
    likely = given(needs={"build": 90, "correctness": 180, "limit": 12, "sanitize": 0})
    assert likely["build"] > 180 and likely["correctness"] > 200, "they come whole, even where they take longer"
    assert likely["kernels"] > 60 and likely["models"] > 120


def test_steps_that_are_done_take_no_time_from_others(given, tmp_path: Path) -> None:
    Record(tmp_path).write(Line("two-phase", "", DONE))
    assert given("two-phase", "profile") == {"profile": 520, "report": 20}


# --- the record ----------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_left_out_and_not_built_upon(tmp_path: Path) -> None:
    first = Record(tmp_path)
    first.write(Line("limit", "a", DONE, 1.5, found={"limit": [{"x": 1}]}))
    with first.path.open("a") as file:
        file.write('{"step": "limit", "un')
    second = Record(tmp_path)
    assert second.has("limit", "a") and not second.has("limit", "b")
    second.write(Line("limit", "b", FAILED))
    assert [(line.unit, line.status) for line in record.read(second.path)] == [("a", DONE), ("b", FAILED)]
    assert record.read(second.path)[0].found == {"limit": [{"x": 1}]}


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"rows": []}\n{}\n')
    with pytest.raises(ValueError, match=r"other.jsonl: expected results of make gpu, got line 1"):
        record.read(path)


def test_a_rehearsal_builds_only_what_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "PACKAGE", tmp_path)
    build = steps.STEPS[0]

    def command(dry: bool) -> tuple[str, bool]:
        (only,) = build.commands(steps.Run(tmp_path, dry))
        return only.environment["ECA_CUDA_BUILD"], only.shown

    (tmp_path / "_C.of-another-python.so").touch()
    assert command(dry=True) == ("cpu", False) and command(dry=False) == ("cuda", False)
    (tmp_path / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    assert command(dry=True) == ("cuda", True) and command(dry=False) == ("cuda", False)


def test_every_step_but_the_building_one_can_be_left_out_when_done() -> None:
    assert [step.name for step in steps.STEPS if step.always] == ["build", "report"]
    assert len({step.name for step in steps.STEPS}) == len(steps.STEPS)


def test_commands_of_a_gpu_name_files_and_programs_that_exist(tmp_path: Path) -> None:
    run = steps.Run(tmp_path, dry=False, earlier=(tmp_path / "a.jsonl",))
    arguments = [argument for step in steps.STEPS for made in step.commands(run) for argument in made.arguments]
    files = [argument for argument in arguments if argument.endswith(".py")]
    modules = [argument for argument in arguments if argument.startswith("benchmarks.")]
    assert len(files) > 10 and all((ROOT / name).is_file() for name in files)
    assert len(modules) > 5 and all((ROOT / (name.replace(".", "/") + ".py")).is_file() for name in modules)
