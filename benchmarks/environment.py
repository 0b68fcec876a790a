# SPDX-License-Identifier: MIT
"""Where a run was measured: written into every result file, shown above every table."""

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

import eca_cuda
import eca_cuda.info


def collect() -> dict[str, Any]:
    """Date, machine, software, threads, and what ``eca_cuda.info`` says about the build.

    ``load`` is the average number of running processes over the last minute; call this before you measure.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "eca_cuda": eca_cuda.__version__,
        "info": eca_cuda.info.collect(),
    }


def describe(environment: dict[str, Any]) -> str:
    """One line for titles: what it was measured on, torch and the day."""
    threads, day = environment["threads"], environment["date"][:10]
    if gpu := environment.get("gpu"):
        return f"{gpu['name']}, driver {gpu['driver']}, torch {environment['torch']}, {day}"
    return f"{environment['cpu']}, {threads} thread{'s' if threads != 1 else ''}, torch {environment['torch']}, {day}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
