# SPDX-License-Identifier: MIT
"""The command line: ``python -m benchmarks`` measures; ``report``, ``compare`` and ``complexity`` are its commands."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from . import plan, results, tables, timing
from .cases import SUITES, Case, all_cases
from .compare import compare
from .correctness import GateError
from .environment import describe
from .gpu import page
from .gpu.fold import fold, stem
from .providers import PROVIDERS
from .report import rebuild
from .results import Results
from .run import run
from .terminal import show


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after a wrong result, 2 after a wrong argument."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    commands = {"report": _report, "compare": _compare, "complexity": _complexity, "models": _models, None: _run}
    return commands[options.command](options, parser)


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.list:
        rows = [[c.name, str(list(c.shape)), str(c.count)] for c in all_cases().values()]
        show(tables.Table("Cases", ["case", "shape", "blocks"], rows))
        return 0
    jobs = _jobs(options, parser)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        found = run(jobs, timing.QUICK if options.quick else timing.STANDARD)
    except GateError as error:
        print(f"{parser.prog}: {error}; nothing is written", file=sys.stderr)
        return 1
    show(f"{describe(found.environment)}; load average before the run {found.environment['load']}")
    for table in (*tables.full(found.rows), tables.goal_table(found)):
        show(table)
    if options.compare is not None:
        show(compare(options.compare, found))
    if options.json is not None:
        results.save(found, options.json)
    if options.plots is not None:
        _plot(found, options.plots, options.json.stem if options.json else "benchmark")
    return 0


def _jobs(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[plan.Job]:
    """The whole product as soon as one of the choosing options is given, otherwise a ready-made plan."""
    choices = {
        "variants": options.variant,
        "phases": getattr(options, "pass"),
        "dtypes": options.dtype,
        "layouts": options.layout,
        "providers": options.provider,
    }
    named = {key: value for key, value in choices.items() if value}
    if not named and not options.suite and not options.case:
        return plan.quick() if options.quick else plan.standard()
    return plan.product(_cases(options, parser), **named)


def _cases(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Case]:
    """The cases of the named suites that contain ``--case``; without suites, of all for ``--case``, else resnet50."""
    suites = options.suite or (list(SUITES) if options.case else ["resnet50"])
    unique = dict.fromkeys(case for suite in suites for case in SUITES[suite])
    chosen = [case for case in unique if options.case in case.name]
    if not chosen:
        parser.error(
            f"argument --case: expected a part of a case name in {', '.join(suites)} (see --list), got {options.case!r}"
        )
    return chosen


def _report(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    lines = [path for path in options.files if path.suffix == ".jsonl"]
    try:
        by_path = {path: results.load(path) for path in options.files if path not in lines}
        if lines:
            folded = fold(lines)
            path = options.results / f"{stem(folded.environment)}.json"
            results.save(folded, path)
            by_path[path] = folded
    except (OSError, ValueError) as error:
        parser.error(f"argument FILE: {error}")
    for path, found in by_path.items():
        try:
            text = rebuild(options.readme.read_text(encoding="utf-8"), path.stem, found)
            results.write_whole(options.readme, text)
            if page.is_gpu(found):
                beside = {other.stem: results.load(other) for other in path.parent.glob("*.json")}
                of_gpus = {name: other for name, other in beside.items() if page.is_gpu(other)}
                for mark, file in (("gpu-readme", options.readme), ("gpu", options.page)):
                    results.write_whole(file, page.rebuild(file.read_text(encoding="utf-8"), mark, of_gpus))
        except (OSError, ValueError) as error:
            parser.error(f"argument --readme or --page: {error}")
        _plot(found, path.parent, path.stem)
        show(f"wrote {path.parent}/{path.stem}-*.png and the tables made from {path}")
    return 0


def _compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    show(compare(options.old, options.new))
    return 0


def _complexity(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if importlib.util.find_spec("torchvision") is None:
        parser.error("complexity: expected torchvision to be installed, got no such module")
    from . import complexity  # torchvision takes a second to import and nothing else needs it

    show(complexity.table(complexity.measure()))
    return 0


def _models(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if importlib.util.find_spec("timm") is None:
        parser.error("models: expected timm to be installed, got no such module")
    from . import models  # timm takes seconds to import and nothing else needs it

    setting, budget = (
        (models.QUICK_SETTING, models.QUICK) if options.quick else (models.STANDARD_SETTING, models.STANDARD)
    )
    try:
        found = models.measure(setting, budget)
    except GateError as error:
        print(f"{parser.prog}: {error}; nothing is written", file=sys.stderr)
        return 1
    show(f"{describe(found.environment)}; load average before the run {found.environment['load']}")
    show(tables.models(found))
    if options.json is not None:
        results.save(found, options.json)
    return 0


def _plot(found: Results, directory: Path, stem: str) -> None:
    if not found.rows:
        return
    # matplotlib is slow to import, and a run without pictures does not need it
    if page.is_gpu(found):
        from .gpu import plots
    else:
        from . import plots

    plots.save_all(found, directory, stem)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        description="Time eca_cuda against PyTorch. Without options: the standard plan, under 4 minutes on 2 cores. "
        "With one of the choosing options: every combination of what they name. "
        "On a machine with a GPU: python -m benchmarks gpu --help.",
    )
    choose = parser.add_argument_group("what to measure (each option takes one name or several)")
    for option, choices, default in (
        ("suite", SUITES, "resnet50, or all with --case"),
        ("variant", plan.VARIANTS, "eca"),
        ("pass", plan.PHASES, "both"),
        ("dtype", plan.DTYPES, "float32"),
        ("layout", plan.LAYOUTS, "contiguous"),
        ("provider", PROVIDERS, "all"),
    ):
        text = f"{', '.join(choices)} (default: {default})"
        choose.add_argument(f"--{option}", nargs="+", choices=choices, metavar="NAME", help=text)
    choose.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    choose.add_argument("--list", action="store_true", help="list all cases and stop")
    how = parser.add_argument_group("how")
    how.add_argument("--quick", action="store_true", help="less precise; without a choice, a plan of under 40 s")
    how.add_argument("--threads", type=_positive, metavar="N", help="intra-op threads of PyTorch (default: its own)")
    output = parser.add_argument_group("what to do with the results")
    output.add_argument("--json", type=_new_file, metavar="OUT.json", help="write all rows")
    output.add_argument("--plots", type=_directory, metavar="DIR", help="write PNG pictures")
    output.add_argument("--compare", type=_results, metavar="OLD.json", help="show ratios to an earlier run")

    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    report = commands.add_parser("report", help="regenerate tables and plots; results of make gpu are folded first")
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="FILE.json, or results.jsonl of make gpu")
    report.add_argument("--readme", type=Path, default=Path("README.md"), help="default: README.md")
    report.add_argument("--page", type=Path, default=Path("docs/gpu.md"), help="of GPUs (default: docs/gpu.md)")
    report.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="where GPU.json goes (default: %(default)s)"
    )
    both = commands.add_parser("compare", help="compare two runs")
    both.add_argument("old", type=_results, metavar="OLD.json")
    both.add_argument("new", type=_results, metavar="NEW.json")
    commands.add_parser("complexity", help="recompute the paper's parameter and FLOP counts")
    networks = commands.add_parser("models", help="time a ResNet-50 without attention, with SE and with ECA")
    networks.add_argument("--quick", action="store_true", help="four blocks and small images")
    networks.add_argument("--json", type=_new_file, metavar="OUT.json", help="write all rows")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _new_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file in a writable folder, got {text!r}")
    return path


def _directory(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got the file {text!r}")
    return path


def _results(text: str) -> Results:
    try:
        return results.load(Path(text))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error
