# SPDX-License-Identifier: MIT
"""The command line. ``python -m benchmarks`` measures layers; its commands measure networks or show results."""

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from . import cases, gpu, results
from .clock import DRY, QUICK, STANDARD, Cpu, Gpu

PAGES = ("README.md", *(f"docs/{name}.md" for name in ("index", "benchmark", "block", "gpu")))  # with generated parts


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 after something failed, 2 after a wrong argument."""
    parser = _make_parser()
    options = parser.parse_args(argv)
    commands = {"networks": _networks, "gpu": _gpu, "report": _report, "compare": _compare, None: _layers}
    try:
        return commands[options.command](options, parser)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _layers(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.list:
        for case in cases.all_cases().values():
            print(f"{case.name:28} {list(case.shape)!s:22} {case.count} block{'s' if case.count > 1 else ''}")
        return 0
    jobs = _jobs(options, parser)
    clock, found = _begin(options)
    from . import run

    run.run(jobs, clock, found)
    return _finish(found)


def _networks(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    clock, found = _begin(options)
    from . import networks

    how = ("eager", "compiled") if options.compiled else ("eager",)
    networks.measure(networks.settings(clock.device, how, options.quick), clock, found, options.quick)
    return _finish(found)


def _gpu(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if options.inner is None:
        return gpu.main(options)
    from . import environment, profile, run, sweep

    # time.monotonic() is the same clock in all processes, so the deadline includes the time of the imports.
    what, dry, deadline = options.inner, options.dry, float(os.environ.get("BENCHMARKS_UNTIL", "inf"))
    if dry:
        torch.set_num_threads(1)
    clock = Cpu(DRY) if dry else Gpu()
    number, count = map(int, options.shard.split("/"))
    layers = (cases.for_gpu if what == "layers" else cases.compiled)(dry)
    if "networks" in what:
        from . import networks

        settings = networks.settings(clock.device, ["eager" if what == "networks" else "compiled"], dry)
    if what == "ncu-calls":
        profile.call_for_ncu(clock, profile.jobs(dry)[:1] if dry else profile.NCU_CALLS)
    elif what == "warm-layers":
        run.warm(layers[number::count], clock)
    elif what == "warm-networks":
        networks.warm([(of, name) for of in settings for name in of.names][number::count], clock, dry)
    if what == "ncu-calls" or what.startswith("warm"):
        return 0
    found = results.begin(options.out / "results.jsonl", environment.collect(clock, dry))
    if what.startswith("layers"):
        run.run(layers, clock, found, deadline)
    elif what.startswith("networks"):
        networks.measure(settings, clock, found, dry)
    elif what == "kernels":
        run.run(profile.jobs(dry), clock, found, deadline, profile.kernels)
    elif what == "ncu":
        profile.ncu(found)
    elif what == "sweep":
        run.run(sweep.jobs(dry), clock, found, deadline, sweep.sweep)
        results.write_whole(options.out / "tuning.json", json.dumps(sweep.rules(found), indent=1) + "\n")
    return int(found.failed)


def _report(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import plots, report

    for path in options.add:
        print(f"wrote {results.show(partial(report.add, folder=options.results), path)}")
    for page in options.pages:
        report.rebuild_page(page, options.results)
        print(f"wrote {page}")
    shown = [picture for page in options.pages for picture in report.pictures(page.read_text(encoding="utf-8"))]
    for stem, name in dict.fromkeys(shown):
        draw = partial(plots.save_all, folder=options.results, stem=stem, names=[name])
        for path in results.show(draw, options.results / f"{stem}.jsonl"):
            print(f"wrote {path}")
    return 0


def _compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from . import tables, terminal

    terminal.show(results.show(tables.compare, options.old, options.new))
    return 0


def _begin(options: argparse.Namespace) -> tuple[Cpu, results.Results]:
    from . import environment  # eca_cuda need not be built for the commands that measure nothing

    torch.set_num_threads(options.threads or torch.get_num_threads())
    clock = Gpu() if options.device == "cuda" else Cpu(QUICK if options.quick else STANDARD)
    dry = options.quick and options.command == "networks"  # then the network is too small to stand for a ResNet-50
    return clock, results.begin(options.json, environment.collect(clock, dry, options.quick))


def _finish(found: results.Results) -> int:
    """Show all tables that the results fill, the most important last."""
    from . import environment, tables, terminal

    here = found.environment
    terminal.show(*tables.for_terminal(found), f"{environment.describe(here)}; load before the run {here['load']}")
    return int(found.failed)


def _jobs(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[cases.Job]:
    """The product of the options that choose jobs; a predefined plan if none of them is given."""
    choices = {"variants": options.variant, "phases": getattr(options, "pass"), "dtypes": options.dtype}
    choices |= {"layouts": options.layout, "providers": options.provider}
    named = {key: value for key, value in choices.items() if value}
    if not named and not options.suite and not options.case:
        return (cases.quick if options.quick else cases.for_gpu if options.device == "cuda" else cases.standard)()
    suites = options.suite or (list(cases.SUITES) if options.case else ["resnet50"])
    unique = dict.fromkeys(case for suite in suites for case in cases.SUITES[suite])
    chosen = [case for case in unique if options.case in case.name]
    if not chosen:
        where = f"{', '.join(suites)} (see --list)"
        parser.error(f"argument --case: expected a part of a case name in {where}, got {options.case!r}")
    return cases.product(chosen, **named)


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m benchmarks",
        description="Time eca_cuda against PyTorch. Without options: the standard plan, under 4 minutes on 2 cores. "
        "With any of the options that choose what to measure: every combination of them.",
    )
    choose = parser.add_argument_group("what to measure (each option takes one or more names)")
    for option, choices, default in (
        ("suite", cases.SUITES, "resnet50, or all with --case"),
        ("variant", (*cases.VARIANTS, cases.BLOCK), "eca"),
        ("pass", cases.ALL_PHASES, "forward and training"),
        ("dtype", cases.DTYPES, "float32"),
        ("layout", cases.LAYOUTS, "contiguous"),
        ("provider", cases.PROVIDERS, "eager, compile, fused, clone"),
    ):
        text = f"{', '.join(choices)} (default: {default})"
        choose.add_argument(f"--{option}", nargs="+", choices=choices, metavar="NAME", help=text)
    choose.add_argument("--case", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    choose.add_argument("--list", action="store_true", help="list all cases and stop")

    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    networks = commands.add_parser("networks", help="time a ResNet-50: plain, SE, ECA, converted, fused residual")
    networks.add_argument("--compiled", action="store_true", help="also time compiled networks")
    for measuring in (parser, networks):  # a default here would override an option given before the command
        kept = {} if measuring is parser else {"default": argparse.SUPPRESS}
        measuring.add_argument("--device", choices=("cpu", "cuda"), **{"default": "cpu", **kept}, help="default: cpu")
        measuring.add_argument("--quick", action="store_true", **kept, help="less precise, and a shorter plan")
        measuring.add_argument("--threads", type=_positive, metavar="N", **kept, help="of PyTorch (default: PyTorch's)")
        measuring.add_argument(
            "--json",
            type=Path,
            metavar="OUT.jsonl",
            **kept,
            help="write rows as they are measured; continue an existing file",
        )

    on_gpu = commands.add_parser("gpu", help="make gpu: build, test and measure on this machine's GPU (docs/gpu.md)")
    on_gpu.add_argument("--step", choices=gpu.STEPS, default="main", help="default: main")
    on_gpu.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    on_gpu.add_argument("--dry", action="store_true", help="run all steps without a GPU; the figures mean nothing")
    on_gpu.add_argument("--inner", help=argparse.SUPPRESS)
    on_gpu.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)

    report = commands.add_parser("report", help="rewrite tables and pictures from the committed results")
    report.add_argument("--add", nargs="+", type=Path, default=[], metavar="FILE", help="results of a GPU to keep")
    folder = results.ROOT / "benchmarks/results"
    report.add_argument("--results", type=Path, default=folder, metavar="DIR", help="where results are kept")
    pages = [results.ROOT / name for name in PAGES]
    report.add_argument("--pages", nargs="+", type=Path, default=pages, metavar="FILE", help="README and docs")
    both = commands.add_parser("compare", help="compare two runs")
    both.add_argument("old", type=Path, metavar="OLD.jsonl")
    both.add_argument("new", type=Path, metavar="NEW.jsonl")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)
