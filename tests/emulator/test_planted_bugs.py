# SPDX-License-Identifier: MIT
"""Bugs planted in the product's kernels are caught: each is one edit of a copy of the sources, and the tests that run
under the sanitizers must then fail, in the named build, for the named reason.

``test_emulator.py`` does the same with small kernels of the emulator's own.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import emulated
import pytest

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")


@dataclass(frozen=True)
class Bug:
    """``old`` becomes ``new`` once in a file of csrc; the build ``flavour`` must report ``caught``."""

    file: str
    old: str
    new: str
    flavour: str
    caught: str
    tests: str = "float32"  # pytest -k
    instance: str = "cuda/one_pass_float.cu"  # compiled with the bug, if it is in a header


WRONG = r"is \d+\.\d+ of its budget|NaN or Inf not where|other bits than schedule"
RACE = "WARNING: ThreadSanitizer: data race"
POISON = "AddressSanitizer: use-after-poison"
UNAWAITED = RACE + "|bulk copy into its shared memory under way"
TWO = "(clean and eca-torch and float32) or (smaller and float32)"  # ThreadSanitizer is slow
ONE = "one_pass_is_clean and eca and one-block and contiguous"
CLUSTERS = "one_pass_is_clean and eca and clusters and contiguous"
TWO_PHASE = "cuda/two_phase_float.cu"
SOUND, NORM = "sound", "cuda/norm_float.cu"


def ways(name: str) -> str:
    """The tests of a way through the one-pass kernels; all ways named here use the bidirectional gate."""
    return f"ways_are_clean and {name}"


BUGS = {
    # Two phases: memory order between blocks
    "partial sums are published without release": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_acq_rel", "cuda::memory_order_relaxed", "thread", RACE, TWO, TWO_PHASE
    ),
    "the gate's flag is raised without release": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_release", "cuda::memory_order_relaxed", "thread", RACE, TWO, TWO_PHASE
    ),
    "the gate's flag is read without acquire": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_acquire", "cuda::memory_order_relaxed", "thread", RACE, TWO, TWO_PHASE
    ),
    # Barriers of a block
    "a tile is counted before all its sums are written": Bug(
        "cuda/rows.cuh",
        "i / columns, sum);\n    }\n    __syncthreads();",
        "i / columns, sum);\n    }",
        "thread",
        RACE,
        TWO,
        TWO_PHASE,
    ),
    "the sums of warps are added up before they are there": Bug(
        "cuda/planes.cuh",
        "    __syncthreads();\n    if (parts == 1) return;",
        "    if (parts == 1) return;",
        "thread",
        RACE,
        TWO,
        TWO_PHASE,
    ),
    "a ticket is read before it is there": Bug(
        "cuda/two_phase.cuh",
        "    __syncthreads();\n    const int64_t ticket",
        "    const int64_t ticket",
        "thread",
        RACE,
        TWO,
        TWO_PHASE,
    ),
    "a step of the gate does not wait for the one before": Bug(
        "cuda/channels.cuh",
        "    each_channel(body);\n    __syncthreads();",
        "    each_channel(body);",
        "thread",
        RACE,
        TWO,
        TWO_PHASE,
    ),
    # Order of work
    "the second visits come before the first ones are due": Bug(
        "plan/two_phase.cpp",
        "two.lag = std::min(",
        "two.lag = 1 + 0 * std::min(",
        "plain",
        r"deadlock:\s+.*two_phase\.cuh:\d+",
        "smaller and float32",
    ),
    "a sample waits for one tile too many": Bug(
        "cuda/two_phase.cuh",
        "<= tiles) __nanosleep",
        "<= tiles + 1) __nanosleep",
        "plain",
        r"deadlock:\s+.*__nanosleep",
        "float32",
        TWO_PHASE,
    ),
    # Indices
    "the halo of one block is off by one": Bug(
        "gates/math.h",
        "return i < 0 ? i + count : i - count;",
        "return i < 0 ? i + count - 1 : i - count;",
        "plain",
        WRONG,
        "float32",
        TWO_PHASE,
    ),
    "the last vectors of a plane are left out": Bug(
        "cuda/planes.cuh",
        "    for (; i < tile.s1; i += step) {",
        "    for (; i < tile.s1 - 2 * N; i += step) {",
        "plain",
        WRONG,
        ways("lanes"),
    ),
    "a plane is read one vector too far": Bug(
        "cuda/planes.cuh",
        "    for (; i < tile.s1; i += step) {",
        "    for (; i <= tile.s1; i += step) {",
        "address",
        r"AddressSanitizer: heap-buffer-overflow.*",
        "kernels_are_clean and float32",
        TWO_PHASE,
    ),
    "a vector that begins in a tile is left out": Bug(
        "cuda/planes.cuh",
        "(tile.c1 - 1) * length + tile.s1 :",
        "(tile.c1 - 1) * length + tile.s1 - N :",
        "plain",
        WRONG,
        "smaller and float32",
        TWO_PHASE,
    ),
    "shared memory is too small for the sums": Bug(
        "plan/two_phase.cpp", "sums + partial * a", "sums + partial * a / 2", "address", POISON
    ),
    "a record is left out of the parameters' gradients": Bug(
        "cuda/parameter_gradients.cu",
        "for (int64_t n = threadIdx.x; n < count;",
        "for (int64_t n = threadIdx.x + 1; n < count;",
        "plain",
        WRONG,
    ),
    # One pass: slabs
    "a slab is read before it is loaded": Bug(
        "cuda/one_pass.cuh",
        "if (bulk()) return ptx::wait_for_copies(loads() + kWhich);",
        "if (bulk()) return;",
        "address",
        POISON,
        ONE,
    ),
    "a load's barrier expects nothing": Bug(
        "cuda/one_pass.cuh",
        "ptx::mbarrier_expect(barrier, bytes * count);",
        "ptx::mbarrier_expect(barrier, 0);",
        "address",
        POISON,
        ONE,
    ),
    "a load's barrier is not armed": Bug(
        "cuda/one_pass.cuh",
        "ptx::mbarrier_expect(barrier, bytes * count);",
        "",
        "plain",
        r"deadlock:\s+.*in an mbarrier at one_pass\.cuh",
        ONE,
    ),
    "a kept residual is not awaited": Bug(
        "cuda/one_pass.cuh", "      if (keeps_residual) pass.template wait<1>();\n", "", "address", POISON, ONE
    ),
    "threads wait for one group of their copies too few": Bug(
        "cuda/one_pass.cuh",
        "ptx::wait_for_loads<1 - kWhich>();",
        "ptx::wait_for_loads<2 - kWhich>();",
        "address",
        POISON,
        ways("strips"),
    ),
    "the copies of other threads are read without a barrier": Bug(
        "cuda/one_pass.cuh",
        "    if (!kRows) __syncthreads();  // in rows, threads",
        "    // in rows, threads",
        "thread",
        RACE,
        ways("threads"),
    ),
    "a slab is masked while it is added up": Bug(
        "cuda/one_pass.cuh",
        "      if (!Pass::kRows) __syncthreads();  // in rows, a thread",
        "      // in rows, a thread",
        "thread",
        RACE,
        ONE,
    ),
    "a streamed map is read beside its place": Bug(
        "cuda/one_pass.cuh",
        "const Far x = pass.template global<Far>(call.x);",
        "Far x = pass.template global<Far>(call.x);\n      x.data += N;",
        "plain",
        WRONG,
        ways("streamed"),
    ),
    "memory is too small for what threads leave": Bug(
        "plan/plan.cpp",
        "for (const int64_t strip : {channels, p.c % channels}) {",
        "for (const int64_t strip : {channels}) {",
        "address",
        POISON,
        "16_bits and odd-last",
    ),
    # One pass: planes that vectors straddle
    "the end of a plane is off by one": Bug(
        "cuda/planes.cuh", "at >= tile.s1 - tile.s0)", "at > tile.s1 - tile.s0)", "plain", WRONG, ways("lanes")
    ),
    "a plane begins with its neighbour's elements": Bug(
        "cuda/planes.cuh", "(at < 0 || at >= tile", "(at >= tile", "plain", WRONG, ways("lanes")
    ),
    "a vector that straddles planes takes the wrong gate": Bug(
        "cuda/planes.cuh", "select(k < left,", "select(k <= left,", "plain", WRONG, ways("lanes")
    ),
    # One pass: blocks of a cluster
    "the halo of a cluster is off by one": Bug(
        "cuda/channels.cuh",
        "array[first + own - half + i], right",
        "array[first + own - half + i - 1], right",
        "plain",
        WRONG,
        ways("two-channels"),
    ),
    "a halo is laid beside its place in a block with fewer channels": Bug(
        "cuda/channels.cuh",
        "const int left_own = left + 1 < blocks ? channels :",
        "const int left_own = true ? channels :",
        "plain",
        WRONG + "|outside|under way",
        ways("circular"),
    ),
    "a window reaches beyond the neighbour": Bug(
        "plan/one_pass.cpp",
        "last >= std::max(r.half, 1)",
        "last >= 1",
        "plain",
        WRONG + "|outside",
        "overreach",
    ),
    "a push is not waited for": Bug(
        "cuda/channels.cuh",
        "expect(barrier, (has_left + has_right) * half)",
        "expect(barrier, 0)",
        "thread",
        UNAWAITED,
        CLUSTERS,
    ),
    "a push that never comes is waited for": Bug(
        "cuda/channels.cuh",
        "expect(barrier, (has_left + has_right) * half)",
        "expect(barrier, 2 * half)",
        "plain",
        r"deadlock:\s+.*in an mbarrier at channels\.cuh",
        CLUSTERS,
    ),
    "blocks push before the others are ready": Bug(
        "cuda/one_pass.cuh", "    if (plan.blocks > 1) ptx::cluster_wait();\n", "", "thread", RACE, CLUSTERS
    ),
    "a block's sum is not waited for": Bug(
        "cuda/channels.cuh",
        "expect(barrier, blocks * mine)",
        "expect(barrier, blocks * mine - 1)",
        "thread",
        UNAWAITED,
        ways("few-sums"),
    ),
    "finished sums are not told to the last block": Bug(
        "cuda/channels.cuh",
        "i < mine * blocks; i += blockDim.x)",
        "i < mine * (blocks - 1); i += blockDim.x)",
        "plain",
        WRONG + "|deadlock",
        ways("many-sums"),
    ),
    "sums of parts go to the wrong block": Bug(
        "cuda/channels.cuh",
        "q * blocks + block, barrier",
        "q * blocks, barrier",
        "plain",
        "deadlock|" + WRONG,
        ways("parts"),
    ),
    "sums of parts are overwritten while they are pushed": Bug(
        "cuda/channels.cuh",
        "    __syncthreads();  // all have read what is now overwritten\n",
        "",
        "thread",
        RACE,
        ways("parts"),
    ),
    "all parts of a strip leave records": Bug(
        "cuda/one_pass.cuh", "    if (pass.part == 0) {\n", "    if (pass.part >= 0) {\n", "thread", RACE, ways("parts")
    ),
    "a block leaves its record in another's place": Bug(
        "cuda/one_pass.cuh",
        "pass.n() * pass.x.blocks + pass.x.block;",
        "pass.n() * pass.x.blocks;",
        "plain",
        WRONG,
        CLUSTERS,
    ),
    "the means' neighbours are off by one": Bug(
        "cuda/channels.cuh",
        "const int c = first - gate.shape.half() + i;",
        "const int c = first - gate.shape.half() + i + (i < gate.shape.half());",
        "plain",
        WRONG,
        CLUSTERS,
    ),
    # Signs, and batch norm
    "a bit is that of the neighbour": Bug("cuda/maps.cuh", "bits >> k & 1", "bits >> (k ^ 1) & 1", "plain", WRONG, ONE),
    "packed signs leave out a byte's last element": Bug(
        "cuda/pack_signs.cu", "k < kPerByte && first", "k < kPerByte - 1 && first", "plain", WRONG, "float32", TWO_PHASE
    ),
    "there is room for one sum of two": Bug(
        "cuda/norm_launch.cuh",
        "two.shared.sums + 2 * partial",
        "two.shared.sums + partial",
        "address",
        POISON,
        SOUND,
        NORM,
    ),
    "samples' means do not count for the variance": Bug(
        "cuda/norm_channels.cu", "about(squares, size,", "about(squares, 0 * size,", "plain", WRONG, SOUND
    ),
    "tiles' means do not count for the variance": Bug(
        "cuda/norm_channels.cu", "[b * p.c], count(b),", "[b * p.c], 0 * count(b),", "plain", WRONG, SOUND
    ),
    "a tile's mean is measured from another element": Bug(
        "cuda/norm.cuh", "x, 0), 0, args.problem.s};", "x, 0), tile.s0, tile.s1};", "plain", WRONG, SOUND, NORM
    ),
    "sums of warps are read before they are there": Bug(
        "cuda/norm_channels.cu", "= number;\n    __syncthreads();", "= number;", "thread", RACE, SOUND
    ),
    "sums of warps are overwritten while they are read": Bug(
        "cuda/norm_channels.cu", "    __syncthreads();\n    numbers[", "    numbers[", "thread", RACE, SOUND
    ),
    "gradients do not depend on the statistics": Bug(
        "gates/norm.h", "+ slope * mean};", "};", "plain", WRONG, SOUND, "cuda/norm_channels.cu"
    ),
    "given statistics leave the mean as it is": Bug(
        "cuda/one_pass.cuh", "mean[c] = of(c).normalized(mean[c]);", "", "plain", WRONG, SOUND
    ),
}


def mutated(name: str, bug: Bug, folder: Path) -> list[Path]:
    """The sources, the one with the bug first, as the linker keeps the first of equal functions. Other sources are
    taken from the repository, and so compiled once for all bugs."""
    text = (emulated.ROOT / "csrc" / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{name}: {bug.file} has changed"
    shutil.copytree(emulated.ROOT / "csrc", folder / "csrc", dirs_exist_ok=True)
    (folder / "csrc" / bug.file).write_text(text.replace(bug.old, bug.new))
    edited = bug.file if bug.file.endswith((".cu", ".cpp")) else bug.instance
    others = [s for s in emulated.sources() if s.name != Path(edited).name]
    return [folder / "csrc" / edited, *others]


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_caught(name: str) -> None:
    bug, mutant = BUGS[name], f"mutant-{list(BUGS).index(name)}"
    folder = emulated.ROOT / "build/emulator" / mutant
    library = emulated.build_library(bug.flavour, mutant, mutated(name, bug, folder))
    status, output = emulated.run_sanitized_tests(bug.flavour, library, bug.tests)
    assert status != 0, f"unnoticed: {name}"
    assert re.search(bug.caught, output, re.DOTALL), output[-4000:]
