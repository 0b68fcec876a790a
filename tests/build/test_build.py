# SPDX-License-Identifier: MIT
"""Building and loading: the decisions that setup.py prints, and one-line errors for everything that may be missing."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from eca_cuda import checks
from eca_cuda._ext import _C

ROOT = Path(__file__).parents[2]
SETUP = ROOT / "setup.py"


def setup(environment: dict[str, str], prelude: str = "pass") -> subprocess.CompletedProcess[str]:
    """Runs setup.py up to printing the package's name; ``prelude`` is Python code to run before it."""
    code = f"import sys, runpy; sys.argv = ['setup.py', '--name']; {prelude}; runpy.run_path({str(SETUP)!r})"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


def hide(*modules: str) -> str:
    return "; ".join(f"sys.modules[{name!r}] = None" for name in modules)


def test_the_decision_is_printed_with_its_reason() -> None:
    done = setup({"ECA_CUDA_BUILD": "cpu"})
    assert done.returncode == 0, done.stderr
    assert "[eca_cuda] building CPU kernels only: ECA_CUDA_BUILD=cpu" in done.stderr


def test_a_build_in_isolation_finds_the_torch_that_is_installed(tmp_path: Path) -> None:
    """As under pip: sys.path holds the requirements of pyproject.toml, and nothing else of the environment."""
    for pattern in ("setuptools*", "pybind11*", "_distutils_hack"):
        for path in Path(sysconfig.get_path("purelib")).glob(pattern):
            (tmp_path / path.name).symlink_to(path)
    prelude = f"sys.path = [p for p in sys.path if 'site-packages' not in p] + [{str(tmp_path)!r}]"
    prelude += "; import importlib.util; assert importlib.util.find_spec('torch') is None"
    done = setup({"ECA_CUDA_BUILD": "cpu"}, prelude)
    assert done.returncode == 0, done.stderr
    assert "[eca_cuda] building CPU kernels only: ECA_CUDA_BUILD=cpu" in done.stderr


@pytest.mark.parametrize(
    ("environment", "prelude", "message"),
    [
        (
            {},
            hide("torch"),
            r"torch.*: pip install 'torch>=2\.10' .* in .* first",
        ),
        (
            {},
            hide("pybind11"),
            "pybind11.*: pip install .* 'pybind11>=3' ninja in .* first",
        ),
        ({"PATH": "/nowhere", "CXX": "/nowhere/c++"}, "pass", r"no C\+\+ compiler found: install g\+\+ or set CXX"),
        ({"ECA_CUDA_BUILD": "gpu"}, "pass", "ECA_CUDA_BUILD: expected auto, cpu or cuda, got 'gpu'"),
        ({"ECA_CUDA_BUILD": "cuda"}, "import torch; torch.version.cuda = None", "but torch .* is a CPU-only build"),
        ({}, "import torch; torch.__version__ = '2.9.0'", "torch >= 2.10 is needed, found 2.9.0: upgrade torch"),
        (
            {},
            "import setuptools; setuptools.__version__ = '65.5'",
            "setuptools 65.5, pybind11 3.*: pip install",
        ),
        ({}, "import sysconfig; sysconfig.get_path = lambda name: '/nowhere'", "Python.h is missing: install"),
    ],
)
def test_what_is_missing_is_said_in_one_line(environment: dict[str, str], prelude: str, message: str) -> None:
    done = setup(environment, prelude)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("[eca_cuda] ") and re.search(message, last), done.stderr


def test_an_editable_installation_keeps_its_objects_for_the_next_build() -> None:
    """It keeps them in the default folder of builds in place."""

    def folder(editable: bool) -> str:
        prelude = "from torch.utils.cpp_extension import BuildExtension as B; finalize = B.finalize_options"
        prelude += "; sys.argv = ['setup.py', 'build_ext', '--inplace']; B.run = lambda self: print(self.build_temp)"
        mode = f"(finalize(self), setattr(self, 'editable_mode', {editable}))"
        if editable:  # as setuptools does
            mode = f"({mode}, setattr(self, 'build_temp', '/nowhere'))"
        done = setup({"ECA_CUDA_BUILD": "cpu"}, f"{prelude}; B.finalize_options = lambda self: {mode}")
        assert done.returncode == 0, done.stderr
        return str((ROOT / done.stdout.splitlines()[-1]).resolve())

    assert folder(editable=True) == folder(editable=False)


def copy_of_package(folder: Path, *, library: str | None) -> Path:
    """A copy of the package without the library, or with a file of that name in its place."""
    package = folder / "eca_cuda"
    shutil.copytree(Path(_C.__file__).parent, package, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    if library:
        (package / library).write_bytes(b"not a library")
    return folder


def import_error(folder: Path, code: str = "import eca_cuda") -> str:
    # Without the finder of an editable install, which would find the library of this checkout.
    prelude = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]"
    command = [sys.executable, "-c", f"{prelude}; sys.path.insert(0, {str(folder)!r}); {code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


def test_a_package_that_is_not_built_says_so(tmp_path: Path) -> None:
    error = import_error(copy_of_package(tmp_path, library=None))
    assert error.startswith("ImportError: eca_cuda is not built: pip install . ")


def test_a_library_for_another_python_says_so(tmp_path: Path) -> None:
    error = import_error(copy_of_package(tmp_path, library="_C.cpython-37m-x86_64-linux-gnu.so"))
    assert "eca_cuda was built for another Python (_C.cpython-37m" in error


def test_a_library_for_something_else_says_so(tmp_path: Path) -> None:
    error = import_error(copy_of_package(tmp_path, library=Path(_C.__file__).name))
    assert "eca_cuda was built for another torch or machine than torch" in error and "rebuild with pip" in error


def test_an_old_torch_says_so(tmp_path: Path) -> None:
    error = import_error(
        copy_of_package(tmp_path, library=None), "import torch; torch.__version__ = '2.9.1'; import eca_cuda"
    )
    assert error == "ImportError: eca_cuda needs torch >= 2.10, found 2.9.1: upgrade torch"


LOAD = f"torch.ops.load_library({_C.__file__!r})"
FORGET = "[sys.modules.pop(name) for name in list(sys.modules) if name.split('.')[0] == 'eca_cuda']"
CALL = "print(eca_cuda.EfficientChannelAttention(4, kernel_size=1)(torch.zeros(1, 4, 1)).sum().item())"


@pytest.mark.parametrize("steps", [f"{LOAD}; {LOAD}", f"import eca_cuda; {LOAD}", f"import eca_cuda; {FORGET}"])
def test_the_same_library_loaded_twice_is_one(steps: str) -> None:
    """AOTInductor's packages load the operators by torch.ops.load_library."""
    code = f"import sys, torch; {steps}; import eca_cuda; {CALL}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr


@pytest.mark.parametrize(
    "steps", [LOAD, f"sys.path.insert(0, {str(ROOT)!r}); import eca_cuda; {FORGET}; sys.path.pop(0)"]
)
def test_a_second_copy_is_refused_instead_of_ending_the_process(tmp_path: Path, steps: str) -> None:
    folder = copy_of_package(tmp_path, library=None)
    shutil.copy(_C.__file__, folder / "eca_cuda")
    error = import_error(folder, f"import torch; {steps}; import eca_cuda")
    assert error == (
        "ImportError: eca_cuda: another copy of the library is loaded in this process: import only one of them"
    )


def test_a_second_copy_that_torch_loads_changes_nothing(tmp_path: Path) -> None:
    second = shutil.copy(_C.__file__, tmp_path)
    code = f"import torch, eca_cuda; torch.ops.load_library({str(second)!r}); {CALL}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0.0\n"), done.stderr


def test_a_cuda_tensor_on_a_cpu_build_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"x: expected a CPU tensor, got cuda:0: eca_cuda was built without CUDA"):
        checks.check_device(torch.device("cuda", 0), cuda_toolkit="")
    with pytest.raises(ValueError, match=r"x: expected a CPU or CUDA tensor, got xpu"):
        checks.check_device(torch.device("xpu"), cuda_toolkit="13.0")
    checks.check_device(torch.device("cuda"), cuda_toolkit="13.0")
    checks.check_device(torch.device("cpu"), cuda_toolkit="")


def test_the_library_does_not_depend_on_the_folder_it_was_built_in() -> None:
    """The path was all that differed between two builds of one sdist in two folders."""
    assert str(ROOT).encode() not in Path(_C.__file__).read_bytes()


def test_import_is_fast() -> None:
    """The goal is 50 ms beyond torch's own import; the best of three processes is measured."""
    code = "import torch, time; t = time.perf_counter(); import eca_cuda; print(time.perf_counter() - t)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)) for _ in range(3))
    assert seconds < 0.05 * 4, "four times the goal, so that a busy machine does not turn this red"


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is a CPU-only build")
def test_torch_offers_what_is_looked_up_at_run_time() -> None:
    """csrc/cuda/torch_device.cpp looks up this function for the current stream; finding it needs no GPU."""
    library = ctypes.CDLL("libtorch_cuda.so", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    assert library.aoti_torch_get_current_cuda_stream
