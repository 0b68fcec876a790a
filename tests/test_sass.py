# SPDX-License-Identifier: MIT
"""The CUDA kernels keep to a budget that no GPU is needed to check: what the compiler made of them (``sass.py``)."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sass
from sass import Instruction, Kernel, Loop

# Instructions per element of loops with 16-byte vectors, by kernel and kind of loop, for float32, float16 and bfloat16:
# what nvcc 13.0 made of them, plus 5 to 10 %. docs/budget.md says where and why that is more than the prototypes took.
CEILINGS = {
    ("forward, planes", "reduce"): (2.7, 2.9, 3.5),
    ("forward, planes", "apply"): (5.4, 4.8, 5.4),
    ("forward, planes", "epilogue"): (10.7, 10.1, 11.0),
    ("forward, straddling", "reduce"): (8.4, 7.9, 8.4),
    ("forward, straddling", "lanes"): (6.6, 6.4, 6.9),
    ("forward, straddling", "apply"): (9.8, 8.1, 8.6),
    ("forward, straddling", "epilogue"): (14.2, 12.9, 14.0),
    ("forward, rows", "reduce"): (2.7, 3.0, 3.5),
    ("forward, rows", "apply"): (2.7, 3.5, 4.1),
    ("forward, rows", "epilogue"): (9.8, 9.6, 10.7),
    ("backward, planes", "reduce"): (3.9, 4.6, 5.6),
    ("backward, planes", "apply"): (6.4, 5.4, 5.9),
    ("backward, planes", "mask"): (8.3, 8.2, 9.2),
    ("backward, straddling", "reduce"): (9.8, 10.2, 11.2),
    ("backward, straddling", "lanes"): (9.5, 7.4, 8.4),
    ("backward, straddling", "apply"): (12.7, 10.0, 10.5),
    ("backward, straddling", "mask"): (9.0, 8.2, 9.2),
    ("backward, rows", "reduce"): (3.7, 4.5, 5.5),
    ("backward, rows", "apply"): (4.7, 4.5, 5.0),
    ("backward, rows", "mask"): (10.2, 8.9, 9.9),
}

# Instructions that a GPU can issue while it copies a byte (shared/KERNELS.md section 5, where they are per element of
# two or three maps): a kernel above that is bound by its instructions.
ISSUED = {"H100": 9.88, "H200": 6.9}

# The loops that a call goes through, and the maps that it moves: plain, and with a residual and ReLU.
CALLS = {
    "forward": [({"reduce", "apply"}, 2), ({"reduce", "epilogue"}, 3)],
    "backward": [({"reduce", "apply"}, 3), ({"mask", "reduce", "apply"}, 5)],
}

# What __launch_bounds__ leaves of a multiprocessor's 65536 registers.
REGISTERS = {"resident": 64, "two_phase<Forward": 64, "two_phase<Backward": 80}

WIDE_FENCE = r"MEMBAR(?!.*\.CTA)"  # of the device or the system


def require_none(found: dict[Any, Any]) -> None:
    assert not found, "\n" + "\n".join(f"{name}: {what}" for name, what in found.items())


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    """Those that a budget holds for: float64 is for checking gradients."""
    try:
        found = sass.kernels(sass.library())
    except sass.Missing as reason:
        pytest.skip(str(reason))
    return [k for k in found if k.passes_over_maps and k.dtype != "double"]


@pytest.fixture(scope="module")
def resident(kernels: list[Kernel]) -> list[Kernel]:
    found = [k for k in kernels if k.is_resident]
    assert {k.dtype for k in found} == {"float", "__half", "__nv_bfloat16"}
    assert {k.is_backward for k in found} == {False, True}
    return found


def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    spilled = {k.name: (k.spilled("STL"), k.spilled("LDL")) for k in kernels}
    require_none({name: f"{bytes_} bytes" for name, bytes_ in spilled.items() if any(bytes_)})


def test_loops_over_maps_keep_to_registers(resident: list[Kernel]) -> None:
    found = {k.name: [i.opcode for loop in k.loops for i in loop.body if i.kind in ("LDL", "STL")] for k in resident}
    require_none({name: opcodes for name, opcodes in found.items() if opcodes})


def test_registers_fit_the_launch_bounds(kernels: list[Kernel]) -> None:
    limits = {k.name: next(n for name, n in REGISTERS.items() if k.name.startswith(name)) for k in kernels}
    require_none({k.name: k.registers for k in kernels if k.registers > limits[k.name]})


def test_samples_arrive_by_bulk_copies_and_sums_by_pushes(resident: list[Kernel]) -> None:
    found = {k.name: (k.count("UBLKCP"), k.count("STAS")) for k in resident}
    require_none({name: counts for name, counts in found.items() if not all(counts)})


def test_cache_hints_are_the_plans(resident: list[Kernel]) -> None:
    """They are in the descriptor that all addresses of an instruction share, and not in the instruction (.EF)."""
    found = {}
    for k in resident:
        copies = [i for i in k.body if i.kind == "UBLKCP" and "desc[" not in i.operands]
        found[k.name] = [i.opcode for i in copies] + [i.opcode for i in k.body if re.match(r"STG.*\.E[FL]\b", i.opcode)]
    require_none({name: opcodes for name, opcodes in found.items() if opcodes})


def test_resident_kernels_wait_for_no_fence_of_the_device(resident: list[Kernel]) -> None:
    """A release at the scope of a cluster would compile to MEMBAR.ALL.GPU, a way to L2 and back; a block's is cheap."""
    require_none({k.name: k.count(WIDE_FENCE) for k in resident if k.count(WIDE_FENCE)})


def test_two_phase_kernels_have_one_fence_for_each_release(kernels: list[Kernel]) -> None:
    """Of a tile's sums when it is counted, and of the gates when the flag is raised."""
    assert max(k.count("MEMBAR") for k in kernels if not k.is_resident) <= 2


def test_wide_vectors_are_loaded_and_stored_whole(resident: list[Kernel]) -> None:
    wide = [k for k in resident if k.vector == 16]
    assert {k.dtype for k in wide} == {k.dtype for k in resident}
    for kernel in wide:
        streams = kernel.is_backward and not kernel.straddles  # x; where vectors straddle, it is in shared memory, too
        for kind, moves in ("reduce", ("LDS", "LDG") if streams else ("LDS",)), ("apply", ("LDS", "STG")):
            loop = kernel.main_loops.get(kind)
            assert loop, f"{kernel.name}: no loop with 16-byte vectors"
            assert all(map(loop.moved, moves)), kernel.name


def direction(kernel: Kernel) -> str:
    return "backward" if kernel.is_backward else "forward"


def instance(kernel: Kernel) -> str:
    return "straddling" if kernel.straddles else "rows" if ", rows," in kernel.name else "planes"


def test_loops_over_wide_vectors_are_short(resident: list[Kernel]) -> None:
    dtypes, found, seen = ("float", "__half", "__nv_bfloat16"), {}, set()
    for k in (k for k in resident if k.vector == 16):
        for kind, loop in k.main_loops.items():
            judged = f"{direction(k)}, {instance(k)}", kind
            seen.add((k.dtype, *judged))
            found[k.name, kind] = loop.per_element(), CEILINGS[judged][dtypes.index(k.dtype)]
    assert seen == {(dtype, *judged) for dtype in dtypes for judged in CEILINGS}
    require_none({name: costs for name, costs in found.items() if costs[0] > costs[1]})


@pytest.mark.parametrize("gpu", ISSUED)
def test_no_resident_kernel_is_bound_by_its_instructions(resident: list[Kernel], gpu: str) -> None:
    found = {}
    for kernel in (k for k in resident if k.loops):
        cost = {kind: loop.per_element() for kind, loop in kernel.main_loops.items()}
        cost["reduce"] = max(cost["reduce"], cost.get("lanes", 0))  # one or the other
        for kinds, maps in CALLS[direction(kernel)]:
            needed, limit = sum(cost[kind] for kind in kinds), ISSUED[gpu] * maps * sass.ITEM[kernel.dtype]
            found[kernel.name, maps] = round(needed, 1), round(limit, 1)
    assert found
    require_none({name: costs for name, costs in found.items() if costs[0] > costs[1]})


def test_the_page_is_of_this_build(kernels: list[Kernel]) -> None:
    text = sass.PAGE.read_text()
    if kernels[0].compiler not in text:
        pytest.skip(f"docs/budget.md is of another compiler than this build, {kernels[0].compiler}")
    assert text.endswith(sass.table(sass.kernels(sass.library()))), "run python -m tests.sass --write"


# --- That the above can see


def code(text: str) -> tuple[Instruction, ...]:
    """Of lines such as ``P LDG.E.128``, where P stands for a condition."""
    found = []
    for n, line in enumerate(filter(None, map(str.strip, text.splitlines()))):
        conditional, rest = line.startswith("P "), line.removeprefix("P ").split(" ", 1)
        found.append(Instruction(16 * n, rest[0], " ".join(rest[1:]), conditional))
    return tuple(found)


def test_cost_of_a_loop() -> None:
    """Two float32 vectors a turn, a residual behind a branch; the way that leaves the second one out is not a turn."""
    body = code("""
        LDS.128 R0
        P BRA 0x30
        LDG.E.128 R4
        STG.E.128 R0
        P BRA 0x80
        LDS.128 R0
        LDS R8
        STG.E.128 R0
        P BRA 0x0
    """)
    loop = Loop(0, body, vector=16, item=4)
    assert loop.kind == "epilogue" and loop.elements == 4  # the residual's vector decides: it is loaded once
    assert (loop.plain, len(loop.body)) == (8, 9)
    assert loop.per_element() == 2


def test_a_reduction_that_adds_nothing_is_no_turn() -> None:
    loop = Loop(0, code("LDS.128 R0\nP BRA 0x40\nFADD R4\nFADD R5\nP BRA 0x0"), vector=16, item=4)
    assert loop.kind == "reduce" and loop.plain == 5


def test_loops_over_maps_are_found() -> None:
    """Not the one around it, nor one that only waits, nor the way back from what is out of line, nor exchanges."""
    body = code("""
        MOV R0
        LDS.128 R4
        SYNCS.TRYWAIT P0
        P BRA 0x20
        P BRA 0xd0
        FADD R0
        P BRA 0x10
        STG.E.128 R4
        P BRA 0x0
        LDS.128 R4
        STAS R0
        P BRA 0x90
        EXIT
        MUFU.RCP R0
        BRA 0x50
    """)
    symbol = "_ZN3eca8residentINS_15ResidentForwardIfLNS_6LayoutE0ELi4EEEEEvNT_4ArgsE"
    kernel = Kernel(symbol, "", 0, body, (), frozenset())
    assert kernel.name == "resident<ResidentForward<float, planes, 4>>"
    assert [(loop.head, len(loop.body)) for loop in kernel.loops] == [(0x10, 8)]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """A kernel that spills, for real, and has a fence."""
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("no nvcc")
    source = tmp_path_factory.mktemp("sass") / "bad.cu"
    source.write_text("""
        __global__ void bad(float* p) {
          float kept[64];
          for (int i = 0; i < 64; ++i) kept[i] = p[i];
          __threadfence();
          for (int i = 0; i < 64; ++i) p[i] = kept[63 - i] * kept[i];
        }
    """)
    command = [nvcc, f"-arch={sass.ARCHITECTURE}", "-maxrregcount=32", "-cubin", "-o", source.with_suffix(".cubin")]
    done = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nvcc can't compile for {sass.ARCHITECTURE}: {done.stderr[-500:]}")
    try:
        return sass.kernels_of(Path(source.with_suffix(".cubin")))[0]
    except sass.Missing as reason:
        pytest.skip(str(reason))


def test_spills_and_fences_are_seen(bad: Kernel) -> None:
    assert bad.spilled("STL") and bad.spilled("LDL")
    assert bad.registers <= 32
    assert bad.count(WIDE_FENCE) == 1
