# SPDX-License-Identifier: MIT
"""The CUDA backend on the emulated device (``tests/emulator``), behind the same Python functions.

The operators take CPU tensors and run the CUDA sources. Every call runs under several schedules, which must give the
same bits.
"""

import ctypes
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

from eca_cuda import ops
from eca_cuda._ext import _C

ROOT = Path(__file__).parent.parent
FLAVOUR = os.environ.get("ECA_CUDA_EMULATOR", "plain")  # "address" and "thread": under sanitizers
LIBRARY = os.environ.get("ECA_CUDA_EMULATED_LIBRARY")  # instead of one built from the sources here

# Schedule 0 runs blocks one after another, schedule 1 all at once in reverse order with the earliest copies.
SCHEDULES = (0, 1)


@functools.cache
def build_tools() -> ModuleType:
    """``tests/emulator/build.py``."""
    sys.path.insert(0, str(Path(__file__).parent / "emulator"))
    try:
        import build
    finally:
        sys.path.pop(0)
    return build


def missing() -> str | None:
    """The reason why there is no emulated device, or None."""
    if not (ROOT / "csrc/cuda").is_dir():
        return "the sources are not here"
    reason: str | None = build_tools().missing()
    return reason


def sources() -> list[Path]:
    """The sources of the extension, except those that query torch about CUDA."""
    csrc = ROOT / "csrc"
    plans = [csrc / "plan" / name for name in ("plan.cpp", "one_pass.cpp", "two_phase.cpp", "tuning.cpp")]
    host = [csrc / "cuda" / name for name in ("device.cpp", "norm_cuda.cpp", "ops_cuda.cpp")]
    return [*sorted((csrc / "cuda").glob("*.cu")), *host, *plans, ROOT / "tests/emulator/operators.cpp"]


def build_library(flavour: str = FLAVOUR, name: str = "eca_cuda_emulated", files: Sequence[Path] = ()) -> Path:
    """Build the operators, if they are not built, from ``files`` or the extension's sources."""
    path: Path = build_tools().build(
        name,
        files or sources(),
        flavour,
        objects="eca_cuda_emulated",
        includes=[Path(p) for p in cpp_extension.include_paths()],
        defines=["TORCH_TARGET_VERSION=0x020a000000000000", 'ECA_CUDA_ARCHITECTURES="emulated"'],
        libraries=[Path(cpp_extension.library_paths()[0], name) for name in ("libtorch_cpu.so", "libc10.so")],
    )
    return path


@functools.cache
def library() -> ctypes.CDLL:
    """Build and load the operators into ``torch.ops.eca_cuda_emulated``."""
    path = LIBRARY or build_library()
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


def set_device(
    multiprocessors: int = 3,
    threads: int = 64,
    shared: int = 48 << 10,
    l2: int = 64 << 10,
    capability: int = 90,
) -> None:
    """Change the emulated device. With the small defaults, small feature maps take many blocks and tiles."""
    library().emulator_set_device(multiprocessors, threads, shared, l2, capability)


def facts(
    multiprocessors: int = 3, threads: int = 64, shared: int = 48 << 10, l2: int = 64 << 10, capability: int = 90
) -> dict[str, int]:
    """The properties for ``_C.plan`` of the device that ``set_device`` makes from the same arguments."""
    return {
        "capability": capability,
        "multiprocessors": multiprocessors,
        "max_threads": threads,
        "threads_per_multiprocessor": 2048,
        "shared_per_block": min(shared, 48 << 10),
        "shared_per_multiprocessor": shared + 1024,
        "shared_opt_in": shared,
        "l2": l2,
        "most_blocks": 16 if capability >= 90 else 1,
    }


_CHOICE = ("blocks", "parts", "threads")


class _Rule(ctypes.Structure):
    """``eca::Rule``."""

    _fields_ = [(name, ctypes.c_int) for name in ("direction", "dtype", "layout", "variant")]
    _fields_ += [(name, ctypes.c_int64) for name in ("n", "c", "s")]
    _fields_ += [(name, ctypes.c_int) for name in _CHOICE]


_NAMES = {
    "direction": ("forward", "backward"),
    "dtype": ("float32", "float64", "float16", "bfloat16"),
    "layout": ("planes", "rows"),
    "variant": ("eca", "multi_kernel_eca", "bidirectional_eca"),
}


def set_tuning(rules: Sequence[dict[str, Any]]) -> None:
    """``_C.set_tuning`` for the emulated device, and for ``_C.plan``, which then reports its plans."""
    _C.set_tuning(list(rules))
    numbers = [{k: _NAMES[k].index(v) if k in _NAMES else v for k, v in rule.items()} for rule in rules]
    made = (_Rule * len(rules))(*(_Rule(**{"variant": -1, **rule}) for rule in numbers))
    assert library().emulator_set_tuning(made, len(rules), ctypes.sizeof(_Rule)), "eca::Rule has changed"


COUNTERS = ("launches", "blocks", "loaded", "stored", "pushed", "barriers")


def count() -> dict[str, int]:
    """Counters since the start: kernels launched, their blocks, bytes loaded once or stored for later, numbers pushed
    to other blocks, barriers of blocks."""
    return {name: _count(f"emulator_{name}") for name in COUNTERS}


def launches() -> int:
    """The number of kernels launched so far."""
    return _count("emulator_launches")


def _count(name: str) -> int:
    counter = library()[name]
    counter.restype = ctypes.c_long
    return int(counter())


def _bits(result: Any) -> list[Tensor]:
    tensors = result if isinstance(result, (tuple, list)) else (result,)
    return [t.contiguous().flatten().view(torch.uint8) for t in tensors]


def _under(schedules: Sequence[int], operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if any(isinstance(t, Tensor) and torch._C._functorch.is_legacy_batchedtensor(t) for t in args):
            return operator(*args)  # batched gradients of gradcheck: bits cannot be compared
        results = []
        for schedule in schedules:
            library().emulator_set_schedule(schedule)
            results.append(operator(*args))
        for schedule, result in zip(schedules[1:], results[1:], strict=True):
            same = map(torch.equal, _bits(result), _bits(results[0]))
            assert all(same), f"schedule {schedule} gives other bits than schedule {schedules[0]}"
        return results[0]

    return call


@contextmanager
def emulated(schedules: Sequence[int] = SCHEDULES) -> Iterator[None]:
    """In the body, calls with CPU tensors run the CUDA kernels on the emulated device."""
    library()
    variants, infer = dict(ops.OPERATORS), dict(ops.INFER)
    try:
        for name in variants:
            there = [getattr(torch.ops.eca_cuda_emulated, f"{name}_{d}").default for d in ops.Operators._fields]
            wrapped = ops.Operators(*(_under(schedules, operator) for operator in there))
            ops.OPERATORS[name], ops.INFER[name] = wrapped, wrapped.infer
        yield
    finally:
        ops.OPERATORS.update(variants)
        ops.INFER.update(infer)


def run_sanitized_tests(flavour: str, library: Path, only: str = "", timeout: float = 540) -> tuple[int, str]:
    """The status and output of the marked tests that match ``only``, run in a process that a sanitizer may end."""
    tools = build_tools()
    environment = {**os.environ, **tools.preload(flavour)}
    environment |= {"ECA_CUDA_EMULATOR": flavour, "ECA_CUDA_EMULATED_LIBRARY": str(library)}
    # -s: otherwise the report of a sanitizer that ends the process is lost.
    command = [*tools.wrapper(flavour), sys.executable, "-m", "pytest", "-s", "-q", "-x", "-p", "no:cacheprovider"]
    here = Path(__file__).parent / "emulator"
    tests = [
        str(here / name) for name in ("test_emulated_kernels.py", "test_emulated_norm.py", "test_emulated_one_pass.py")
    ]
    command += ["-p", "no:xdist", "-m", "sanitized", "-k", only, *tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr
