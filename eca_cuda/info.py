# SPDX-License-Identifier: MIT
"""``python -m eca_cuda.info [--json]``: the build, its environment and the devices. Paste it into bug reports.

With ``--plan`` instead: the launch plan of a call (``plan_report``).
"""

import argparse
import json
import platform
import sys
from typing import Any

import torch

from . import plan_report
from ._ext import _C
from ._version import __version__


def collect() -> dict[str, Any]:
    """Facts of the build, of this process and of its devices, as JSON-ready values."""
    build = _C.build_info()
    return {
        "eca_cuda": __version__,
        "built": build["built"],
        "built_with": {
            "eca_cuda": build.get("version"),  # of the library; it may be older than the Python files
            "torch": build["torch"],
            "compiler": build["compiler"],
            "cuda": build["cuda"] or None,
        },
        "running": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_cuda": torch.version.cuda,
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
        },
        "devices": {"cpu": _cpu(), "cuda": _cuda(build["cuda"])},
    }


def _cpu() -> str:
    return f"{_C.cpu_kernels()} kernels on {_cpu_model()}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cuda(toolkit: str) -> str:
    if not torch.cuda.is_available():
        return "no GPU visible to torch"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"kernels built with CUDA {toolkit} on {names}" if toolkit else f"no kernels in this build, for {names}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m eca_cuda.info", description="Show the build, its environment and the devices."
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    plan_report.add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.plan is not None:
        try:
            print(plan_report.report(options))
        except ValueError as error:
            parser.error(str(error))
        return 0
    for name in plan_report.OPTIONS:
        if getattr(options, name):
            parser.error(f"--{name}: expected together with --plan, got no --plan")
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    for key, value in facts.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, fact in value.items():
                print(f"  {name}: {'-' if fact is None else fact}")
        else:
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
