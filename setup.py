# SPDX-License-Identifier: MIT
"""Builds eca_cuda._C: CPU kernels always, CUDA kernels where torch is a CUDA build and its compiler is at hand.

Environment: ECA_CUDA_BUILD=auto|cpu|cuda (auto), ECA_CUDA_DEBUG=1 (-O0 -g, warnings are errors),
TORCH_CUDA_ARCH_LIST. The decision is printed (pip shows it with -v) and stored: python -m eca_cuda.info.
"""

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
NEEDED = "'torch>=2.10' 'setuptools>=77' 'pybind11>=3' ninja"
VERSION = re.search(r'"(.+)"', (ROOT / "eca_cuda/_version.py").read_text())[1]
STABLE_ABI = "0x020a000000000000"  # torch 2.10: one build serves that version and all later ones

CPU_SOURCES = [str(p.relative_to(ROOT)) for d in ("", "cpu", "plan") for p in sorted((ROOT / "csrc" / d).glob("*.cpp"))]
CUDA_SOURCES = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc/cuda").glob("*.c*")) if p.suffix != ".cuh"]


def stop(message: str) -> None:
    raise SystemExit(f"[eca_cuda] {message}")


# pip builds without the packages that are installed here, torch among them. It is this torch that is to be built for.
if importlib.util.find_spec("torch") is None:
    site.addsitedir(sysconfig.get_path("platlib"))
try:
    import pybind11
    import torch
    import torch.utils.cpp_extension as extensions
except ImportError as error:
    stop(f"{error}: pip install {NEEDED} in {sys.prefix} first (uv and build hide them: docs/install.md)")
if tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) < (2, 10):
    stop(f"torch >= 2.10 is needed, found {torch.__version__}: upgrade torch")
if int(setuptools.__version__.split(".")[0]) < 77 or int(pybind11.__version__.split(".")[0]) < 3:
    stop(f"setuptools {setuptools.__version__}, pybind11 {pybind11.__version__}: pip install --upgrade {NEEDED}")
if not Path(sysconfig.get_path("include"), "Python.h").exists():
    stop("Python.h is missing: install Python's headers (Debian: apt install python3-dev)")


def cuda_homes() -> list[Path]:
    """Where a toolkit may be: CUDA_HOME, beside the nvcc on PATH, torch's usual place, or PyPI's packages."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if nvcc := shutil.which("nvcc"):
        homes.append(Path(nvcc).resolve().parent.parent)
    homes += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    for root in getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", []):
        homes += sorted(Path(root).glob("cu[0-9]*"), reverse=True)
    return homes


def cuda_toolkit() -> tuple[Path, str]:
    """The home and version of a toolkit that fits torch; LookupError saying why there is none."""
    if torch.version.cuda is None:
        raise LookupError(f"torch {torch.__version__} is a CPU-only build")
    # An nvcc on PATH may be a wrapper outside its toolkit: the headers must be there too.
    homes = [h for h in cuda_homes() if (h / "bin/nvcc").exists() and (h / "include/cuda_runtime.h").exists()]
    if not homes:
        packages = " ".join(f"'{p}=={torch.version.cuda}.*'" for p in ("cuda-toolkit[nvcc,crt,cccl]", "nvidia-nvvm"))
        raise LookupError(f"no nvcc found: set CUDA_HOME, or pip install {packages}")
    for home in homes:
        text = subprocess.run([home / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
        found = match[1] if (match := re.search(r"release ([\d.]+)", text)) else "of unknown version"
        if found.split(".")[0] == torch.version.cuda.split(".")[0]:
            if tuple(map(int, found.split("."))) < (12, 8):
                raise LookupError(f"nvcc {found} is too old: 12.8 or later is needed")
            return home, found
    raise LookupError(f"nvcc {found} does not fit torch's CUDA {torch.version.cuda}: the major versions must be equal")


def decide() -> tuple[tuple[Path, str] | None, str]:
    """The toolkit to build CUDA kernels with, or None, and the reason in words."""
    wanted = os.environ.get("ECA_CUDA_BUILD", "auto")
    if wanted not in ("auto", "cpu", "cuda"):
        stop(f"ECA_CUDA_BUILD: expected auto, cpu or cuda, got {wanted!r}")
    try:
        if wanted == "cpu":
            raise LookupError("ECA_CUDA_BUILD=cpu")
        toolkit = cuda_toolkit()
    except LookupError as reason:
        if wanted == "cuda":
            stop(f"ECA_CUDA_BUILD=cuda, but {reason}")
        return None, f"CPU kernels only: {reason}"
    return toolkit, f"CPU and CUDA kernels with nvcc {toolkit[1]} for {architectures()}"


def architectures() -> str:
    """Those asked for, or of the GPUs here, or all: code for 8.0 also runs on 8.6 and 8.9, and PTX on what comes."""
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    here = ["{}.{}".format(*capability) for capability in sorted(found) if capability >= (7, 5)]
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(here) or "7.5;8.0;9.0;10.0;12.0+PTX"


def extension(toolkit: tuple[Path, str] | None, reason: str):
    print(f"[eca_cuda] building {reason}", file=sys.stderr, flush=True)
    defines = [
        f"-DTORCH_TARGET_VERSION={STABLE_ABI}",
        f'-DECA_CUDA_VERSION="{VERSION}"',
        f'-DECA_CUDA_TORCH="{torch.__version__}"',
        f'-DECA_CUDA_TOOLKIT="{toolkit[1] if toolkit else ""}"',
        f'-DECA_CUDA_BUILT="{reason}"',
        f'-DECA_CUDA_ARCHITECTURES="{architectures() if toolkit else ""}"',
    ]
    # -ffp-contract=off: the same roundings, so the same bits, on every instruction set (csrc/cpu/simd.h).
    # The folder of the build leaves no trace: the same sources and tools give the same library.
    cxx = ["-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", f"-ffile-prefix-map={ROOT.resolve()}/=", *defines]
    cxx += ("-O0 -g -Wall -Werror -DECA_CHECKS" if os.environ.get("ECA_CUDA_DEBUG") == "1" else "-O3 -g0").split()
    arguments = {
        "name": "eca_cuda._C",
        # Before torch's headers: up to torch 2.13 they carry a pybind11 that refuses the stable ABI.
        "include_dirs": [pybind11.get_include()],
        "extra_link_args": ["-Wl,--as-needed"] if sys.platform == "linux" else [],
    }
    if toolkit is None:
        built = extensions.CppExtension(sources=CPU_SOURCES, extra_compile_args={"cxx": cxx}, **arguments)
    else:
        extensions.CUDA_HOME = str(toolkit[0])  # torch has guessed already, on import
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
        flags = {"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": ["-O3", "--compress-mode=size"]}
        built = extensions.CUDAExtension(sources=CPU_SOURCES + CUDA_SOURCES, extra_compile_args=flags, **arguments)
        # Static: the library then needs no particular libcudart, and PyPI's toolkits have no other one.
        built.libraries = ["cudart_static" if name == "cudart" else name for name in built.libraries]
        built.library_dirs += [str(d) for d in (toolkit[0] / "lib64", toolkit[0] / "lib") if d.is_dir()]
        built.extra_link_args += ["-lrt", "-ldl", "-lpthread"]
    # Nothing of torch's CUDA libraries: where torch is a CPU-only build, the library loads all the same.
    built.libraries = [name for name in built.libraries if name not in ("torch_python", "c10_cuda", "torch_cuda")]
    return built


class Build(extensions.BuildExtension):
    """Editable installations, too, keep their objects in build/: the next build and wheels compile what has changed."""

    def run(self) -> None:
        if self.editable_mode:  # setuptools has chosen a temporary folder
            self.build_temp = str(ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}")
        super().run()


if not shutil.which(os.environ.get("CXX", "c++")) and not shutil.which("g++"):
    stop("no C++ compiler found: install g++ or set CXX")
setuptools.setup(ext_modules=[extension(*decide())], cmdclass={"build_ext": Build})
