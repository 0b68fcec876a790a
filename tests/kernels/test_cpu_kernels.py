# SPDX-License-Identifier: MIT
"""Every instruction set gives the same bits, converts 16-bit numbers exactly, and stays in its own code."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from eca_cuda._ext import _C

SETS = ("avx512", "avx2", "baseline")

# Prints a digest of y and all gradients for each variant, dtype, layout and shape.
DIGESTS = """
import hashlib, torch
from eca_cuda.testing import VARIANTS, channels_last, evaluate, make_x
import eca_cuda

def digest(*tensors):
    data = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors if t.numel())
    return hashlib.sha256(data).hexdigest()[:16]

for variant in VARIANTS:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for layout in (torch.clone, channels_last):
            for shape in ((3, 37, 7, 7), (2, 20, 33, 5), (1, 3, 200, 190)):
                x, grad_y, residual = (layout(make_x(shape, dtype, seed=s)) for s in (0, 1, 2))
                parameters = variant.make_parameters(shape[1], dtype)
                got = evaluate(variant.function, x, parameters, residual=residual, grad_y=grad_y, activation="relu")
                print(variant.name, dtype, layout.__name__, shape, digest(*got.results.values()))
"""


def run(code: str, instruction_set: str) -> str:
    environment = {**os.environ, "ECA_CUDA_CPU": instruction_set}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def available() -> list[str]:
    """The instruction sets of this machine, best first: the one that the kernels chose, and all narrower ones."""
    best = os.environ.get("ECA_CUDA_CPU", _C.cpu_kernels())
    return list(SETS[SETS.index(best) :])


def test_all_instruction_sets_give_the_same_bits() -> None:
    outputs = {name: run(DIGESTS, name) for name in available()}
    baseline = outputs["baseline"]
    assert len(baseline.splitlines()) == 3 * 4 * 2 * 3
    for name, output in outputs.items():
        assert output == baseline, f"{name} differs from baseline"


# Planes of eight numbers and their negatives, so that no sum overflows, and rows of single positions.
ALL_NUMBERS = """
import torch, eca_cuda
positive = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
for dtype in (torch.float16, torch.bfloat16):
    half = positive.view(dtype).reshape(4096, 1, 8)
    planes = torch.cat((half, -half), 2)
    rows = planes.reshape(4096, 16, 1)
    for bias in (3.0, 0.0, -1.0):  # hard_sigmoid gives gates of 1, 1/2 and 1/3
        gate = torch.nn.functional.relu6(torch.tensor(bias) + 3) / 6
        for x in (planes, rows):
            x = torch.where(x.isfinite(), x, torch.zeros_like(x))
            y = eca_cuda.eca(x, torch.zeros(1, 1, 1), torch.tensor([bias]), gate="hard_sigmoid")
            expected = (x.float() * gate).to(dtype)
            assert torch.equal(y.view(torch.int16), expected.view(torch.int16)), (dtype, bias)
    y = eca_cuda.eca(torch.zeros_like(planes), torch.zeros(1, 1, 1), residual=planes)
    assert torch.equal(y.isnan(), planes.isnan()), dtype
    assert torch.equal(y[~y.isnan()], planes[~planes.isnan()]), dtype
"""


@pytest.mark.parametrize("instruction_set", SETS)
def test_all_16_bit_numbers_are_read_and_rounded_exactly(instruction_set: str) -> None:
    if instruction_set not in available():
        pytest.skip(f"this machine does not run {instruction_set}")
    run(ALL_NUMBERS, instruction_set)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"ECA_CUDA_CPU: expected one of .*baseline on this machine, got sse9"):
        run("from eca_cuda._ext import _C; _C.cpu_kernels()", "sse9")


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump (binutils) is not installed")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="register names of x86-64")
def test_wide_registers_are_used_in_their_own_functions_only() -> None:
    """If the linker kept a library function compiled for AVX-512 for all sets, older processors would crash."""
    text = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    owners = {"zmm": ("avx512",), "ymm": ("avx512", "avx2")}
    function, seen, strays = "", dict.fromkeys(owners, 0), set()
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = header[1]
            continue
        for register, namespaces in owners.items():
            if f"%{register}" in line:
                seen[register] += 1
                if not any(f"::{namespace}::" in function for namespace in namespaces):
                    strays.add(f"{register} in {function}")
    assert all(seen.values()), seen
    assert not strays, sorted(strays)


# Prints whether the middle of an output has the advice for huge pages ("hg" in VmFlags), and the sum of the output.
HUGE_PAGES = """
import torch, eca_cuda
x = torch.randn(2, 64, 160, 160, generator=torch.Generator().manual_seed(0))
y = eca_cuda.eca(x, torch.full((1, 1, 3), 0.3))
middle, inside = y.data_ptr() + y.nbytes // 2, False
for line in open("/proc/self/smaps"):
    first, *rest = line.split()
    if "-" in first:
        begin, end = (int(address, 16) for address in first.split("-"))
        inside = begin <= middle < end
    elif inside and first == "VmFlags:":
        print("hg" in rest)
print(y.double().sum().item())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="huge pages are asked for on Linux")
def test_huge_pages_are_asked_for_on_demand_and_change_no_result() -> None:
    outputs = []
    for value in ("", "1"):
        environment = {**os.environ, "ECA_CUDA_HUGE_PAGES": value}
        command = [sys.executable, "-c", HUGE_PAGES]
        outputs.append(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    (default, result), (advised, same_result) = (output.split() for output in outputs)
    assert (default, advised) == ("False", "True")
    assert result == same_result


def test_kernels_report_their_instruction_set() -> None:
    assert _C.cpu_kernels() in SETS
    assert torch.backends.cpu.get_cpu_capability() != "AVX512" or _C.cpu_kernels() == os.environ.get(
        "ECA_CUDA_CPU", "avx512"
    )
