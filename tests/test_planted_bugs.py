# SPDX-License-Identifier: MIT
"""Bugs planted in the product's own kernels are caught: each is one edit of a copy of the sources, and the tests that
run under the sanitizers must then fail, in the build that is named, for the reason that is named.

``test_emulator.py`` shows the same of the emulator's own little kernels.
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


WRONG = r"is \d+\.\d+ of its budget|NaN or Inf not where|other bits than schedule"
RACE = "WARNING: ThreadSanitizer: data race"
POISON = "AddressSanitizer: use-after-poison"
RESIDENT = "resident and eca and clusters and contiguous"
ONE = "(clean and eca-torch and float32) or (smaller and float32)"  # ThreadSanitizer is slow

BUGS = {
    # Memory order between blocks
    "partial sums are published without release": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_acq_rel", "cuda::memory_order_relaxed", "thread", RACE, ONE
    ),
    "the gate's flag is raised without release": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_release", "cuda::memory_order_relaxed", "thread", RACE, ONE
    ),
    "the gate's flag is read without acquire": Bug(
        "cuda/two_phase.cuh", "cuda::memory_order_acquire", "cuda::memory_order_relaxed", "thread", RACE, ONE
    ),
    # Barriers of a block
    "a tile is counted before all its sums are written": Bug(
        "cuda/two_phase.cuh",
        "      __syncthreads();\n      if (threadIdx.x == 0) turn->completes",
        "      if (threadIdx.x == 0) turn->completes",
        "thread",
        RACE,
        ONE,
    ),
    "a ticket is read before it is there": Bug(
        "cuda/two_phase.cuh",
        "    __syncthreads();\n    const int64_t ticket",
        "    const int64_t ticket",
        "thread",
        RACE,
        ONE,
    ),
    "a sum over the block does not wait for all warps": Bug(
        "cuda/block.cuh",
        "  __syncthreads();\n  A total = warps[0];",
        "  A total = warps[0];",
        "plain",
        WRONG,
        "(bidirectional or eca) and float32",
    ),
    "a step of the gate does not wait for the one before": Bug(
        "cuda/channels.cuh",
        "    __syncthreads();\n#pragma unroll 1\n    for (int64_t j = threadIdx.x; j < numbers",
        "#pragma unroll 1\n    for (int64_t j = threadIdx.x; j < numbers",
        "thread",
        RACE,
        ONE,
    ),
    # Order of work
    "the second visits come before the first ones are due": Bug(
        "plan/plan.cpp",
        "plan.lag = std::min(",
        "plan.lag = 1 + 0 * std::min(",
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
    ),
    # Indices
    "the halo is off by one": Bug(
        "gates/math.h",
        "return i < 0 ? i + count : i - count;",
        "return i < 0 ? i + count - 1 : i - count;",
        "plain",
        WRONG,
    ),
    "the last vectors of a plane are left out": Bug(
        "cuda/reduce.cuh",
        "    for (; v < vectors; v += lanes) {",
        "    for (; v < vectors - 1; v += lanes) {",
        "plain",
        WRONG,
    ),
    "a plane is read one vector too far": Bug(
        "cuda/reduce.cuh",
        "    for (; v < vectors; v += lanes) {",
        "    for (; v <= vectors; v += lanes) {",
        "address",
        r"AddressSanitizer: heap-buffer-overflow.*",
    ),
    "shared memory is too small for the sums": Bug(
        "plan/plan.cpp",
        "layout.sums + sums * a",
        "layout.sums + sums * a / 2",
        "address",
        POISON,
    ),
    "a sample is left out of the parameters' gradients": Bug(
        "cuda/parameters.cu",
        "for (int64_t n = threadIdx.x; n < args.samples;",
        "for (int64_t n = threadIdx.x + 1; n < args.samples;",
        "plain",
        WRONG,
    ),
    # Resident kernels: slabs
    "a slab is read before it is loaded": Bug(
        "cuda/copies.cuh",
        "!ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cta",
        "false && !ptx::mbarrier_try_wait_parity(ptx::sem_acquire, ptx::scope_cta",
        "address",
        POISON,
        RESIDENT,
    ),
    "a piece of a slab is not awaited": Bug(
        "cuda/copies.cuh", "arrived <= piece", "arrived < piece", "address", POISON, "ways and pieces"
    ),
    "a slab is awaited by the wrong parity": Bug(
        "cuda/copies.cuh", "sample / stages % 2", "sample % 2", "address", POISON, "ways and groups"
    ),
    "a slab's barrier expects nothing": Bug(
        "cuda/copies.cuh", "second ? 2 * piece : piece);", "0);", "address", POISON, RESIDENT
    ),
    "a slab's barrier is not armed": Bug(
        "cuda/copies.cuh",
        "ptx::mbarrier_arrive_expect_tx(",
        "if (bytes < 0) ptx::mbarrier_arrive_expect_tx(",
        "plain",
        r"deadlock:\s+.*in an mbarrier at copies\.cuh",
        RESIDENT,
    ),
    "threads wait for one group of their copies too few": Bug(
        "cuda/copies.cuh",
        "if (stages == 3) __pipeline_wait_prior(2)",
        "if (stages == 3) __pipeline_wait_prior(3)",
        "address",
        POISON,
        "ways and stages-threads",
    ),
    "the copies of other threads are read without a barrier": Bug(
        "cuda/copies.cuh",
        "    __syncthreads();\n  }\n  template <class T>\n  __device__ Slab<T>",
        "  }\n  template <class T>\n  __device__ Slab<T>",
        "thread",
        RACE,
        "ways and stages-threads",
    ),
    "a slab is loaded over while it is read": Bug(
        "cuda/resident.cuh",
        "    loader.release();\n    __syncthreads();\n",
        "    loader.release();\n",
        "thread",
        RACE,
        RESIDENT,
    ),
    "a slab is masked while it is added up": Bug(
        "cuda/resident.cuh",
        "      __syncthreads();\n    }\n    dot(slab)",
        "    }\n    dot(slab)",
        "thread",
        RACE,
        RESIDENT,
    ),
    # Resident kernels: planes that vectors straddle
    "a parked map is read before it has arrived": Bug(
        "cuda/copies.cuh",
        "bool kArrives = true",
        "bool kArrives = false",
        "address",
        POISON,
        "ways and groups and None",
    ),
    "the end of a plane in a group is off by one": Bug(
        "cuda/dense.cuh",
        "if (k < left) total[k] += terms[k];",
        "if (k <= left) total[k] += terms[k];",
        "plain",
        WRONG,
        "ways and groups",
    ),
    "a plane begins with its neighbour's elements": Bug(
        "cuda/dense.cuh",
        "if (static_cast<unsigned>(i - begin + k) < static_cast<unsigned>(length))",
        "if (i - begin + k < length)",
        "plain",
        WRONG,
        "ways and lanes",
    ),
    "a vector that straddles planes takes the wrong gate": Bug(
        "cuda/dense.cuh", "k < left ? g[0] : g[1]", "k <= left ? g[0] : g[1]", "plain", WRONG, "ways and lanes"
    ),
    # Resident kernels: samples, one after another
    "the next sample is begun while others read which one it is": Bug(
        "cuda/resident.cuh",
        "    __syncthreads();\n    if (threadIdx.x == 0) {\n      Part& part",
        "    if (threadIdx.x == 0) {\n      Part& part",
        "thread",
        RACE,
        RESIDENT,
    ),
    "which sample is next is read before it is written": Bug(
        "cuda/resident.cuh", "    }\n    __syncthreads();\n  }\n}", "    }\n  }\n}", "thread", RACE, RESIDENT
    ),
    # Resident kernels: blocks of a cluster
    "a kept parameter is read from another block's columns": Bug(
        "cuda/cluster.cuh",
        "[j * plan.channels + c - part().first]",
        "[j * plan.channels + c]",
        "plain",
        WRONG,
        "ways and kept",
    ),
    "blocks push before the others are ready": Bug(
        "cuda/resident.cuh",
        "  if constexpr (Kind::kCopies == Copies::kBulk) ptx::barrier_cluster_wait(ptx::sem_acquire);\n",
        "",
        "thread",
        RACE,
        RESIDENT,
    ),
    "an exchange is not awaited": Bug(
        "cuda/cluster.cuh",
        "while (!ptx::mbarrier_try_wait_parity(",
        "while (false && !ptx::mbarrier_try_wait_parity(",
        "thread",
        RACE + "|bulk copy into its shared memory under way",
        RESIDENT,
    ),
    "an exchange waits for the wrong phase": Bug(
        "cuda/cluster.cuh",
        "barrier, part().sample / 2 % 2)) {",
        "barrier, (part().sample / 2 + 1) % 2)) {",
        "plain",
        WRONG + "|deadlock|more arrivals than the mbarrier expects|bulk copy into its shared memory under way",
        RESIDENT,
    ),
    "all samples are exchanged in one place": Bug(
        "cuda/cluster.cuh", "part().sample % 2 * plan.exchange_numbers : 0", "0 : 0", "thread", RACE, RESIDENT
    ),
    "an exchange expects nothing": Bug(
        "cuda/cluster.cuh",
        "static_cast<uint32_t>(expected * sizeof(A))",
        "static_cast<uint32_t>(0 * expected)",
        "thread",
        RACE + "|bulk copy into its shared memory under way",
        RESIDENT,
    ),
    "the halo of a cluster is off by one": Bug(
        "cuda/cluster.cuh",
        "padded[half + c];",
        "padded[half + (c + 1) % count()];",
        "plain",
        WRONG,
        "circular and float32",
    ),
    "blocks leave while others wait for them": Bug(
        "cuda/resident.cuh",
        "  while (pass.part().n < p.n) {\n",
        "  while (pass.part().n < p.n) {\n    if (plan.ranks > 1 && pass.part().rank == plan.ranks - 1) return;\n",
        "plain",
        "deadlock|bulk copy into its shared memory under way",
        RESIDENT,
    ),
}


def mutated(name: str, bug: Bug, folder: Path) -> list[Path]:
    """The sources, the one with the bug first: of the functions that several hold, the linker keeps the first. Kernels
    that the tests don't run are taken from where they are, and so compiled once for all bugs."""
    text = (emulated.ROOT / "csrc" / bug.file).read_text()
    assert text.count(bug.old) == 1, f"{name}: {bug.file} has changed"
    shutil.copytree(emulated.ROOT / "csrc", folder / "csrc", dirs_exist_ok=True)
    (folder / "csrc" / bug.file).write_text(text.replace(bug.old, bug.new))
    resident = ("cuda/resident.cuh", "cuda/cluster.cuh", "cuda/copies.cuh", "cuda/dense.cuh")
    instance = "cuda/resident_float.cu" if bug.file in resident else "cuda/two_phase_float.cu"
    edited = bug.file if bug.file.endswith((".cu", ".cpp")) else instance
    others = [s for s in emulated.sources() if s.name != Path(edited).name]
    return [folder / "csrc" / edited, *others]


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_caught(name: str) -> None:
    bug, mutant = BUGS[name], f"mutant-{list(BUGS).index(name)}"
    folder = emulated.ROOT / "build/emulator" / mutant
    library = emulated.build_library(bug.flavour, mutant, mutated(name, bug, folder))
    status, output = emulated.run_sanitized_tests(bug.flavour, library, bug.tests)
    assert status != 0, f"nobody noticed: {name}"
    assert re.search(bug.caught, output, re.DOTALL), output[-4000:]
