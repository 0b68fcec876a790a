# SPDX-License-Identifier: MIT
"""The compiled CUDA kernels keep to a budget, which is read from their SASS without a GPU (``sass.py``)."""

import shutil
import subprocess
from pathlib import Path

import pytest
import sass
from sass import Instruction, Kernel

BACKWARD = ("eca_two_phase_backward_kernel", "eca_norm_dots_kernel", "eca_norm_gradient_kernel")
REGISTERS = dict.fromkeys(BACKWARD, 80)  # others 64, as __launch_bounds__ allows
BARRIERS = {"eca_forward_kernel<EcaGate": 8, "eca_norm_forward_kernel<EcaGate": 10, "eca_backward_kernel<EcaGate": 12}
ONE_PASS = ("forward", "norm_forward", "backward")
WIDE_FENCE = r"MEMBAR(?!.*\.CTA)"  # of the device or the system
WIDE_COPY, WIDE_LOAD = r"LDGSTS\..*\b128", r"LDS?\..*\b128"  # to, and of, shared memory
NARROW_LOAD = r"LDG?\.(?!.*\b(128|U8))"  # of global memory, or of either; a byte is the signs of 16


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    try:
        return sass.kernels()
    except sass.Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def one_pass(kernels: list[Kernel]) -> list[Kernel]:
    found = [k for k in kernels if k.name.startswith(tuple(f"eca_{d}_kernel" for d in ONE_PASS))]
    assert len(found) == 2 * 3 * 3 * 3 + 3 * 3  # directions, gates, dtypes, walks; batch norm forward, before one gate
    return found


@pytest.fixture(scope="module")
def eca(one_pass: list[Kernel]) -> list[Kernel]:
    return [k for k in one_pass if "EcaGate" in k.name]


def test_registers_fit_the_launch_bounds(kernels: list[Kernel]) -> None:
    assert not {k.name: k.registers for k in kernels if k.registers > REGISTERS.get(k.name.split("<")[0], 64)}


def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    assert not {k.name: k.spilled() for k in kernels if k.spilled()}


def test_barriers_on_the_way_of_a_sample(eca: list[Kernel]) -> None:
    """Barriers of a block, and one of the cluster, before the first push."""
    found = {k.name: k.barriers() for k in eca}
    assert not {name: n for name, n in found.items() if not 0 < n <= BARRIERS[name.split(",")[0]]}
    assert {k.most("UCGABAR_WAIT") for k in eca} == {1}
    for k in (k for k in eca if "rows" not in k.name):  # samples need not take the ways left out of the count
        assert {*k.all(sass.MAP_STORE)} <= {*k.ways(sass.CP_ASYNC)}, k.name


def test_maps_arrive_by_wide_copies_and_numbers_by_pushes(one_pass: list[Kernel]) -> None:
    for k in one_pass:
        needed = [WIDE_COPY if "rows" in k.name else "UBLKCP", "STAS", WIDE_LOAD, sass.MAP_STORE]
        assert not [opcodes for opcodes in needed if not k.all(opcodes)], k.name


def test_maps_are_stored_16_bytes_at_a_time(one_pass: list[Kernel]) -> None:
    assert not {k.name: [i.opcode for i in found] for k in one_pass if (found := k.narrow())}


def test_one_pass_kernels_wait_for_no_fence_of_the_device(one_pass: list[Kernel]) -> None:
    """A release at cluster scope would compile to MEMBAR.ALL.GPU, a round trip to L2; one at block scope is cheap."""
    assert not [k.name for k in one_pass if k.all(WIDE_FENCE)]


def test_two_phase_kernels_have_one_fence_for_each_release(kernels: list[Kernel]) -> None:
    """One releases a tile's sums when it is counted, one the gates when the flag is raised."""
    assert {len(k.all("MEMBAR")) for k in kernels if "two_phase" in k.name} == {2}


def test_parameter_gradients_are_loaded_when_the_kernel_before_is_done(kernels: list[Kernel]) -> None:
    found = [k for k in kernels if k.name.startswith("eca_parameter_gradients_kernel")]
    assert found
    for k in found:
        (wait,) = k.all("ACQBULK")
        assert all(wait.address < i.address for i in k.all(r"LDG?\.")), k.name


def test_only_maps_are_loaded_between_arrival_and_store(eca: list[Kernel]) -> None:
    """By then shared memory holds everything else that ECA needs. Weights of other gates look like any other load."""
    for k in eca:
        assert k.before_stores(WIDE_LOAD) and not k.before_stores(NARROW_LOAD), k.name


def test_the_page_is_of_this_build(kernels: list[Kernel]) -> None:
    text = sass.PAGE.read_text()
    if kernels[0].compiler not in text:
        pytest.skip(f"docs/budget.md is of another compiler than this build, {kernels[0].compiler}")
    assert text.endswith(sass.table(kernels)), "run python -m tests.kernels.sass --write"


# --- That the above can see


def kernel(text: str, name: str = "rows") -> Kernel:
    """A kernel of instructions such as ``P BRA 0x30``, where P stands for a condition."""
    code = []
    for n, line in enumerate(text.split("; ")):
        opcode, _, operands = line.removeprefix("P ").partition(" ")
        code.append(Instruction(16 * n, opcode, operands, line.startswith("P ")))
    return Kernel(name, "", 0, tuple(code), frozenset())


def test_barriers_are_those_of_the_longest_way() -> None:
    ways = "MOV; P BRA 0x50; BAR.SYNC; BAR.SYNC; BRA 0x70; {}; BAR.SYNC; P EXIT; BAR.SYNC; EXIT; BAR.SYNC"
    assert kernel(ways.format("MOV")).barriers() == 3
    assert kernel(ways.format("BAR.SYNC; BAR.SYNC").replace("0x70", "0x80")).barriers() == 4
    cp_async = ways.format("DEPBAR.LE; BAR.SYNC; BAR.SYNC").replace("0x70", "0x90")
    assert kernel(cp_async).barriers() == 4 and kernel(cp_async, "planes").barriers() == 3
    assert kernel(ways.format("MOV").replace("EXIT; BAR.SYNC", "BRA 0x80; BAR.SYNC")).barriers() > 1000  # in a loop


def test_narrow_accesses_are_seen_in_loops_that_store_maps() -> None:
    visit = "LDG.E; LDS.128; LDS; STG.E.128; {}; P BRA 0x10; STG.E; P BRA 0x60; EXIT"
    assert not kernel(visit.format("STG.E.EF.128")).narrow()
    for opcode in ("STG.E", "ST.E.64", "LDG.E.U16.CONSTANT", "LD.E"):
        assert [i.opcode for i in kernel(visit.format(opcode)).narrow()] == [opcode]


def test_loads_between_arrival_and_store_are_seen() -> None:
    for arrival in ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "DEPBAR.LE"):
        sample = f"LDG.E; {arrival}; P BRA 0x10; {{}}; P BRA 0x70; LD.E.128; STG.E.128; LDG.E.U16; EXIT"
        assert not kernel(sample.format("LDS")).before_stores(NARROW_LOAD)
        for opcode in ("LDG.E", "LD.E.64"):
            assert [i.opcode for i in kernel(sample.format(opcode)).before_stores(NARROW_LOAD)] == [opcode]


def test_spills_and_fences_are_seen(tmp_path: Path) -> None:
    """A kernel that has them is compiled."""
    source, cubin = tmp_path / "bad.cu", tmp_path / "bad.cubin"
    if not (nvcc := shutil.which("nvcc")):
        pytest.skip("no nvcc")
    source.write_text("""
        __global__ void bad(float* p) {
          float kept[64];
          for (int i = 0; i < 64; ++i) kept[i] = p[i];
          __threadfence();
          for (int i = 0; i < 64; ++i) p[i] = kept[63 - i] * kept[i];
        }
    """)
    command = [nvcc, f"-arch={sass.ARCHITECTURE}", "-maxrregcount=32", "-cubin", "-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nvcc can't compile for {sass.ARCHITECTURE}: {done.stderr[-500:]}")
    try:
        (bad,) = sass.kernels_of(cubin)
    except sass.Missing as reason:
        pytest.skip(str(reason))
    assert bad.spilled() and bad.registers <= 32 and len(bad.all(WIDE_FENCE)) == 1
