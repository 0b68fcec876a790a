# SPDX-License-Identifier: MIT
"""Compiles CUDA sources with g++ for the CPU: plain, with AddressSanitizer and UBSan, or with ThreadSanitizer."""

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
OUTPUT = ROOT / "build" / "emulator"
JOBS = 2
HEADERS = ("cuda_runtime.h", "crt/host_defines.h", "cuda/atomic", "cuda/ptx")

Flavour = Literal["plain", "address", "thread"]
FLAVOURS: tuple[Flavour, ...] = ("plain", "address", "thread")

# Symbols are hidden and not unique: a process may hold several of these libraries, and the real libcudart.
# Shared memory needs the global-dynamic model of thread-local storage: runtime/shared_memory.cpp.
COMMON = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-mtls-dialect=gnu", "-ffp-contract=off"]
SANITIZE = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
# At -O0 no racy access is optimized away, and gcc reports the right lines.
KERNEL_FLAGS = {
    "plain": ["-O2", "-g1", "-fno-strict-aliasing"],  # nvcc does not use aliasing either
    "address": ["-O0", "-g", *SANITIZE["address"]],
    "thread": ["-O0", "-g", *SANITIZE["thread"]],
}
RUNTIME_FLAGS = ["-O2", "-g1", "-Wall", "-Wextra"]  # never sanitized: runtime/sanitizers.h


class BuildError(RuntimeError):
    """Names what is missing, or holds the compiler's output."""


# --- The machine


def _homes() -> list[Path]:
    """Where a toolkit may be, as in setup.py: an nvcc on PATH may be a wrapper outside its toolkit."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        homes.append(Path(nvcc).resolve().parent.parent)
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        homes += sorted(Path(root).glob("cu[0-9]*"), reverse=True)
    return homes


def cuda_include() -> list[Path] | None:
    """The folders of NVIDIA's headers. The headers that come with torch lack crt/ and libcu++."""
    for home in _homes():
        folders = [home / "include", home / "include" / "cccl"]
        if all(any((d / header).exists() for d in folders) for header in HEADERS):
            return [d for d in folders if d.is_dir()]
    return None


def missing() -> str | None:
    """The reason why nothing can be built here, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "the CUDA emulator runs on x86-64 Linux only"
    if not shutil.which("g++"):
        return "the CUDA emulator needs g++ >= 12"
    if cuda_include() is None:
        packages = "'cuda-toolkit[crt,cccl,cudart]==13.*'"
        headers = ", ".join(HEADERS)
        return f"the CUDA emulator needs NVIDIA's headers ({headers}): set CUDA_HOME, or pip install {packages}"
    return None


def _library(name: str) -> str:
    return subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def preload(flavour: Flavour) -> dict[str, str]:
    """The environment variables of an uninstrumented process that loads a library of this flavour."""
    if flavour == "plain":
        return {}
    if flavour == "address":
        libraries = " ".join(_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"))
    else:
        libraries = _library("libtsan.so")
    return {"LD_PRELOAD": libraries, **sanitizer_options(flavour)}


def sanitizer_options(flavour: Flavour) -> dict[str, str]:
    if flavour == "address":
        return {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    if flavour == "thread":  # Python and torch are not instrumented, and would give false reports
        return {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1 atexit_sleep_ms=0"}
    return {}


def wrapper(flavour: Flavour) -> list[str]:
    """The prefix of a command: gcc's ThreadSanitizer fails under the address randomization of newer systems."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    try:
        wild = int(bits.read_text()) > 28
    except OSError:  # may be readable by root only
        wild = True
    return ["setarch", "-R"] if flavour == "thread" and wild and shutil.which("setarch") else []


# --- Building


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def _unless_current(output: Path, command: Sequence[str], make: Callable[[Path], Sequence[Path]]) -> Path:
    """The file that ``make(temporary)`` creates, returning its inputs; kept if these and the command are unchanged."""
    stamp = output.with_name(output.name + ".json")

    def state(inputs: Sequence[str]) -> dict[str, object]:
        return {"command": list(command), "inputs": {name: _digest(Path(name).read_bytes()) for name in inputs}}

    try:
        known = json.loads(stamp.read_text())
        if output.exists() and known == state(list(known["inputs"])):
            return output
    except (OSError, ValueError, KeyError):
        pass  # never built, or an input is gone
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.{os.getpid()}")
    inputs = make(temporary)
    stamp.write_text(json.dumps(state([str(path) for path in inputs])))
    os.replace(temporary, output)  # a process that has loaded the old file keeps it
    return output


def _compile(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    source = source.resolve()
    language = ["-x", "c++", "-include", str(HERE / "cuda_emulator.h")] if source.suffix == ".cu" else []
    command = ["g++", *COMMON, *flags, *language, "-c", str(source)]

    def make(output: Path) -> list[Path]:
        depfile = output.with_suffix(".d")
        _run([*command, "-MMD", "-MF", str(depfile), "-o", str(output)])  # -MMD: all but system headers
        names = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        depfile.unlink()
        return [Path(name) for name in names]

    return _unless_current(folder / f"{source.stem}-{_digest(str(source).encode())[:8]}.o", command, make)


def _link(output: Path, inputs: Sequence[Path], flags: Sequence[str]) -> Path:
    command = ["g++", *flags, *(str(path) for path in inputs)]

    def make(temporary: Path) -> Sequence[Path]:
        _run([*command, "-o", str(temporary)])
        return inputs

    return _unless_current(output, command, make)


def build(
    name: str,
    sources: Sequence[Path],
    flavour: Flavour,
    *,
    includes: Sequence[Path] = (),
    defines: Sequence[str] = (),
    libraries: Sequence[Path] = (),
    executable: bool = False,
    objects: str = "",
) -> Path:
    """A shared library of the sources (.cu: kernels; .cpp: host code) and the runtime, or an executable that loads it.

    ``libraries`` are files to link with, by their present paths. Nothing is built twice: compiled files are kept with
    the digests of all their inputs, in a folder ``objects`` (or ``name``) that several builds may share. Several
    processes may call this at once.
    """
    if reason := missing():
        raise BuildError(reason)
    nvidia = [flag for folder in cuda_include() or [] for flag in ("-isystem", str(folder))]
    # Headers of packages are assumed not to change: as system headers they are left out of the depfiles.
    own = [w for d in includes for w in ("-isystem" if "site-packages" in d.parts else "-I", str(d))]
    flags = [*KERNEL_FLAGS[flavour], *(f"-D{d}" for d in defines), *own, *nvidia]
    folder = OUTPUT / flavour / (objects or name)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / ".lock", "w") as lock, ThreadPoolExecutor(JOBS) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runtime = sorted((HERE / "runtime").glob("*.cpp"))
        jobs = [pool.submit(_compile, s, folder, flags) for s in sources]
        jobs += [pool.submit(_compile, s, OUTPUT / "runtime", [*RUNTIME_FLAGS, *nvidia]) for s in runtime]
        compiled = [job.result() for job in jobs]
        paths = [f"-Wl,-rpath,{library.resolve().parent}" for library in libraries]
        # -Bsymbolic: calls reach our cudaGetLastError even if the process has another one.
        shared = ["-shared", *SANITIZE[flavour], "-Wl,-Bsymbolic", *paths]
        library = _link(OUTPUT / flavour / f"lib{name}.so", [*compiled, *libraries], shared)
        if not executable:
            return library
        # `main` is in the library, too: in an executable the linker would choose the model of thread-local storage.
        return _link(OUTPUT / flavour / name / "main", [library], [*SANITIZE[flavour], f"-Wl,-rpath,{library.parent}"])
