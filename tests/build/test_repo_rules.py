# SPDX-License-Identifier: MIT
"""The architecture, enforced: includes and imports between layers, file sizes, licence lines, listed sources."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eca_cuda"

# What a file of a layer may include. L0: no torch, no CUDA. L1: no torch. L3 is the only layer that sees torch.
TORCH = re.compile(r"#include <(torch|ATen|c10|pybind11)/")
CUDA = re.compile(r"#include <(cuda|cooperative_groups)")
LAYER = re.compile(r"^// (L[0-3])\. ", re.MULTILINE)

# Python modules may import the modules listed for them; reference imports none of ours.
PYTHON_LAYERS = {
    "_version": set(),
    "_compat": set(),
    "reference": set(),
    "_ext": {"_compat"},
    "checks": {"_ext"},
    "options": {"_ext", "checks"},
    "table": {"checks"},
    "compiling": {"_compat"},
    "tuning": {"_ext"},
    "ops": {"_ext", "checks", "options"},
    "sharding": {"_compat", "checks", "ops", "options"},
    "autograd": {"_compat", "checks", "compiling", "ops", "options", "reference", "sharding", "table"},
    "norm": {"autograd", "checks", "compiling", "ops", "options", "reference", "sharding"},
    "submodules": {"checks", "reference"},
    "layer": {"checks", "options", "submodules"},
    "variants.*": {
        "_compat",
        "autograd",
        "checks",
        "layer",
        "ops",
        "options",
        "reference",
        "submodules",
        "table",
    },  # every file there
    "variants": {"checks", "table"},
    "functional": {"norm", "options", "variants.bidirectional", "variants.eca", "variants.multi_kernel"},
    "inductor.eca_graph": {"checks", "ops"},
    "inductor.norm_graph": {"checks", "inductor.eca_graph"},
    "inductor": {"autograd", "compiling", "inductor.eca_graph", "inductor.norm_graph", "norm", "options"},
    "conversion.trial": set(),
    "conversion.swap": {"_compat"},
    "conversion.places": set(),
    "conversion.basis": {"conversion.places", "submodules"},
    "conversion.watch": {"conversion.basis", "conversion.places"},
    "conversion.python_code": {"conversion.places", "conversion.swap", "conversion.trial"},
    "conversion.witness": {"conversion.python_code", "conversion.trial"},
    "conversion.notes": {
        "conversion.basis",
        "conversion.python_code",
        "conversion.swap",
        "conversion.trial",
        "conversion.watch",
    },
    "conversion.replica": {
        "conversion.basis",
        "conversion.notes",
        "conversion.python_code",
        "conversion.swap",
        "conversion.trial",
    },
    "conversion.recipe": {"conversion.basis", "submodules"},
    "conversion.comparison": {
        "conversion.notes",
        "conversion.python_code",
        "conversion.recipe",
        "conversion.replica",
        "conversion.swap",
        "conversion.trial",
        "conversion.witness",
        "reference",
    },
    "conversion.fused_norm": {"functional"},
    "conversion.fused_attention": {
        "_compat",
        "conversion.fused_norm",
        "conversion.recipe",
        "conversion.swap",
        "conversion.trial",
        "conversion.watch",
        "functional",
    },
    "conversion.recognition": {
        "conversion.basis",
        "conversion.comparison",
        "conversion.fused_attention",
        "conversion.recipe",
        "conversion.replica",
        "conversion.swap",
        "conversion.trial",
        "conversion.watch",
        "variants.bidirectional",
        "variants.eca",
        "variants.multi_kernel",
    },
    "conversion.block_graph": {
        "conversion.basis",
        "conversion.notes",
        "conversion.places",
        "conversion.replica",
        "conversion.swap",
        "conversion.trial",
    },
    "conversion.block_rewriting": {
        "conversion.basis",
        "conversion.block_graph",
        "conversion.fused_attention",
        "conversion.fused_norm",
        "conversion.recipe",
        "conversion.recognition",
        "conversion.swap",
        "conversion.trial",
        "functional",
        "submodules",
        "variants.eca",
    },
    "conversion.blocks": {
        "conversion.basis",
        "conversion.block_graph",
        "conversion.block_rewriting",
        "conversion.fused_attention",
        "conversion.places",
        "conversion.recognition",
        "conversion.swap",
        "conversion.trial",
        "conversion.watch",
    },
    "conversion": {
        "conversion.blocks",
        "conversion.fused_attention",
        "conversion.recipe",
        "conversion.recognition",
        "conversion.swap",
        "conversion.watch",
    },
    "plan_report": {"_ext", "variants.eca"},
    "info": {"_ext", "_version", "plan_report"},
    "testing": {"checks", "table", "variants.bidirectional", "variants.eca", "variants.multi_kernel"},
    "__init__": {
        "_version",
        "compiling",
        "conversion",
        "functional",
        "inductor",
        "reference",
        "table",
        "tuning",
        "variants.bidirectional",
        "variants.eca",
        "variants.multi_kernel",
    },
}


def tracked() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.splitlines() if (ROOT / line).exists()]


def sources(*suffixes: str) -> list[Path]:
    return [path for path in tracked() if path.suffix in suffixes]


def test_files_stay_small() -> None:
    limits = {".py": 400, ".cpp": 400, ".h": 400, ".cu": 400, ".cuh": 400}
    lengths = {path: len(path.read_text().splitlines()) for path in sources(*limits)}
    assert lengths
    too_long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > limits[p.suffix]}
    assert not too_long
    assert lengths[ROOT / "setup.py"] <= 150
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_every_source_names_its_licence() -> None:
    for path in sources(".py", ".cpp", ".h", ".cu", ".cuh"):
        assert "SPDX-License-Identifier: MIT" in path.read_text().splitlines()[0], path


def test_cpp_files_name_their_layer_and_include_accordingly() -> None:
    files = [path for path in sources(".cpp", ".h", ".cu", ".cuh") if (ROOT / "csrc") in path.parents]
    assert files
    for path in files:
        text = path.read_text()
        layer = LAYER.search(text)
        assert layer, f"{path} does not say its layer"
        if layer[1] != "L3":
            assert not TORCH.search(text), f"{path} is {layer[1]} and includes torch or pybind11"
            for name in re.findall(r'#include "(.+)"', text):
                included = LAYER.search((path.parent / name).read_text())
                assert included and included[1] <= layer[1], f"{path} ({layer[1]}) includes {name} ({included})"
        if layer[1] == "L0":
            assert not CUDA.search(text), f"{path} is L0 and includes CUDA"


def test_instruction_set_files_use_nothing_of_the_cpp_library() -> None:
    """The library's inline functions have one name for all instruction sets; see csrc/cpu/simd.h."""
    shared = ["simd.h", "memory.h", "signs.h", "reduce.h", "walk.h", "maps.h", "channels.h", "table.h", "kernels.h"]
    allowed = {"cstdint", "cstring", "cmath", "immintrin.h"}
    files = [ROOT / "csrc/cpu" / name for name in shared] + list((ROOT / "csrc/gates").glob("*.h"))
    files += (ROOT / "csrc/cpu").glob("kernels_*.cpp")
    for path in files:
        assert set(re.findall(r"#include <(.+)>", path.read_text())) <= allowed, path


def module_name(path: Path) -> str:
    """Such as ``conversion.watch``; the name of a subpackage, and ``__init__`` for ``eca_cuda`` itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """The names of our modules that a file imports."""
    folder, found = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            package = folder[: len(folder) + 1 - node.level]
            named = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join((*package, name)) for name in named}
    return found


def test_python_modules_import_only_what_is_below_them() -> None:
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    layers = {name: re.sub(r"^variants\..*", "variants.*", name) for name in modules}
    assert set(layers.values()) == set(PYTHON_LAYERS)
    for name, path in modules.items():
        assert imports(path) <= PYTHON_LAYERS[layers[name]], name


def test_only_ops_spells_the_operators_namespace() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.stem not in ("ops", "_ext"):  # _ext asks whether another copy is loaded
            assert "torch.ops.eca_cuda" not in path.read_text(), path


def test_pre_commit_runs_what_ci_runs() -> None:
    """Both run `make lint`, which alone lists the linters."""
    config, scripts = ROOT / ".pre-commit-config.yaml", [p for p in (ROOT / ".ci").glob("*") if p.is_file()]
    if not (config.exists() and scripts):
        pytest.skip("not a git checkout")
    assert re.findall(r"^ +entry: (.+)$", config.read_text(), re.MULTILINE) == ["make lint"]
    commands = [line for path in scripts for line in path.read_text().splitlines()]
    assert "make lint" in commands
    assert not [line for line in commands if re.search(r"\b(ruff|mypy|clang-format)\b", line)]


def test_templates_ask_for_what_was_built() -> None:
    templates = [path for path in tracked() if path.parts[-2] == "ISSUE_TEMPLATE" or "template" in path.stem]
    assert len(templates) == 3
    for path in templates:
        assert "python -m eca_cuda.info" in path.read_text(), path


def test_make_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^make (\S+) +\S.*$", done.stdout, re.MULTILINE)
    assert phony and sorted(listed) == sorted(phony[1].split())


def test_the_rules_for_commits_are_told_and_asked_for() -> None:
    for name in ("CONTRIBUTING.md", ".github/pull_request_template.md"):
        path = ROOT / name
        if not path.exists():
            pytest.skip("not a git checkout")
        text = path.read_text()
        assert all(word in text for word in ("imperative", "72 characters", "body", "numbers", "test")), name


def test_the_version_is_written_once() -> None:
    version = re.search(r'"(.+)"', (ROOT / "eca_cuda/_version.py").read_text())
    assert version
    for name in ("pyproject.toml", "setup.py"):
        assert version[1] not in (ROOT / name).read_text(), name
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
