# SPDX-License-Identifier: MIT
"""The environment of a run, written at the head of every result file and shown above every table."""

import datetime
import os
import platform
import re
from typing import Any

import torch

import eca_cuda
import eca_cuda.info

from .clock import Cpu
from .results import sources


def collect(clock: Cpu, dry: bool = False, quick: bool = False) -> dict[str, Any]:
    """Date, machine, software, threads, and the output of ``eca_cuda.info``.

    ``load`` is the load average of the last minute: call this before measuring.
    """
    gpu, info = clock.facts(), eca_cuda.info.collect()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": gpu.get("name") or info["devices"]["cpu"].partition(" on ")[2],
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "eca_cuda": eca_cuda.__version__,
        "sources": sources(),
        "dry": dry,
        "quick": quick,
        "settings": {name: value for name, value in os.environ.items() if re.match("ECA_CUDA_(?!EMULATED)", name)},
        "info": info,
        "gpu": gpu,
    }


def describe(environment: dict[str, Any]) -> str:
    """One line for titles: the device, threads or driver, torch and the day."""
    threads, day = environment["threads"], environment["date"][:10]
    how = f"{threads} thread{'s' if threads != 1 else ''}"
    if gpu := environment["gpu"]:
        how = f"driver {gpu['driver']}"
    if commit := environment.get("commit"):
        how += f", sources of {commit}"
    return f"{environment['device']}, {how}, torch {environment['torch']}, {day}"
