# SPDX-License-Identifier: MIT
"""What the compiler made of the CUDA kernels, read from a built library: registers, spills, instructions, and the cost
of the loops that pass over feature maps. Needs no GPU, only NVIDIA's two disassemblers.

    python -m tests.sass [--write]     prints the table of docs/budget.md, or rewrites it

A spill is what the compiler has marked as one; local memory that holds an object, such as the executor that a gate gets
by reference, is none.
"""

import argparse
import functools
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/budget.md"
MARKER = "<!-- from here on: python -m tests.sass --write -->"
ARCHITECTURE = "sm_90"
ITEM = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}  # bytes
LAYOUT = {"0": "planes", "1": "rows"}
WIDTH = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}  # bytes; 4 where nothing is said
BYTES = 16  # of one instruction
ADDITIONS = ("FADD", "FFMA")
# Of loops over maps; lanes: threads share planes that straddle.
KINDS = ("reduce", "lanes", "apply", "epilogue", "mask")
TOGETHER = ("BAR", "STAS")  # loops over maps have none of them
ENDS = ("EXIT", "RET", "BPT")  # BPT: a trap


class Missing(Exception):
    """Says what there is to read, or to read it with, is not here."""


# --- What a kernel is made of


@dataclass(frozen=True)
class Instruction:
    address: int
    opcode: str
    operands: str
    conditional: bool

    @functools.cached_property
    def kind(self) -> str:
        """The opcode without what follows its first dot."""
        return self.opcode.split(".")[0]

    @functools.cached_property
    def width(self) -> int:
        """Bytes that a memory instruction moves for one thread."""
        return next((WIDTH[part] for part in self.opcode.split(".")[1:] if part in WIDTH), 4)

    @functools.cached_property
    def target(self) -> int | None:
        """Where a branch goes; BRA.DIV, which only diverged warps take, does not count."""
        if self.kind != "BRA" or "DIV" in self.opcode:
            return None
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def ways(self) -> list[int]:
        """Addresses that may be next."""
        on = [self.address + BYTES] if self.target is None or self.conditional else []
        return on if self.target is None else [*on, self.target]


@dataclass(frozen=True)
class Loop:
    """A loop over feature maps without another one in it; loops that wait for a copy may be."""

    head: int  # the address where each turn begins
    body: tuple[Instruction, ...] = field(repr=False)
    vector: int  # bytes: accesses of this width are to the maps
    item: int  # bytes of an element
    is_backward: bool = False

    def moved(self, kind: str) -> int:
        """Bytes of the maps that a thread moves in one turn, whichever way it takes."""
        return sum(i.width for i in self.body if i.kind == kind and i.width == self.vector)

    @functools.cached_property
    def elements(self) -> int:
        """Elements that a thread does in one turn. All maps are visited alike, some only where there is a residual: so
        it is the least of what it loads from shared memory, loads, and stores. Backward's sums are of two maps, which
        may both be in shared memory."""
        moved = min(filter(None, map(self.moved, ("LDS", "LDG", "STG"))), default=0)
        both = self.is_backward and self.kind == "reduce" and not self.moved("LDG")
        return moved // self.item // (2 if both else 1)

    @property
    def additions(self) -> int:
        return sum(i.kind in ADDITIONS for i in self.body)

    @functools.cached_property
    def kind(self) -> str:
        """One of KINDS, or nothing. A mask puts gradients back into its slab; an epilogue reads a residual."""
        if self.moved("STG"):
            return "mask" if self.moved("STS") else "epilogue" if self.moved("LDG") else "apply"
        return "reduce" if self.additions else ""

    @functools.cached_property
    def plain(self) -> int:
        """Instructions of the shortest way through it that moves, and in a reduction adds, as much as any way does."""
        kind = next(filter(self.moved, ("STG", "LDS", "LDG")), "")
        best = {self.head: (0, 0, 0)}  # address -> -bytes moved, -additions, instructions on the way there
        turns = []
        for i in self.body:
            if i.address not in best:
                continue
            moved, added, count = best[i.address]
            moved -= i.width * (i.kind == kind and i.width == self.vector)
            added -= i.kind in ADDITIONS and self.kind == "reduce"
            here = (moved, added, count + 1)
            turns += [here] * (self.head in i.ways)
            for way in i.ways:
                if way > i.address:
                    best[way] = min(best.get(way, here), here)
        return min(turns)[2]

    def per_element(self, every_way: bool = False) -> float:
        """Instructions per element; of all that it holds, or of the plain way."""
        return (len(self.body) if every_way else self.plain) / self.elements


@dataclass(frozen=True)
class Kernel:
    symbol: str
    compiler: str
    registers: int
    body: tuple[Instruction, ...] = field(repr=False)  # without the functions that it calls
    called: tuple[Instruction, ...] = field(repr=False)
    spills: frozenset[int] = field(repr=False)  # addresses, in body and called

    @functools.cached_property
    def name(self) -> str:
        """As in the source, without namespace and arguments: resident<ResidentForward<__half, planes, 8>>."""

        def constant(match: re.Match[str]) -> str:
            return LAYOUT[match[2]] if match[1] == "Layout" else match[1] + match[2]

        shown = _run("c++filt", self.symbol).strip().removeprefix("void ")
        shown = re.sub(r"\(eca::(\w+)\)(\d+)", constant, shown)
        shown = shown.replace("eca::", "").replace("(anonymous namespace)::", "").split("(")[0]
        return shown.replace(" >", ">").replace(" >", ">")

    @functools.cached_property
    def _instance(self) -> tuple[str, int]:
        """The type of a map's elements and how many of them are a vector; nothing for kernels that touch no map."""
        found = re.search(rf"\b({'|'.join(ITEM)}), (?:{'|'.join(LAYOUT.values())}), (\d+)", self.name)
        return (found[1], int(found[2])) if found else ("", 0)

    @property
    def passes_over_maps(self) -> bool:
        """Not those that are empty on this architecture, either."""
        return bool(self._instance[0]) and self.count("LDG|LDS") > 0

    @property
    def dtype(self) -> str:
        return self._instance[0]

    @property
    def vector(self) -> int:
        """Bytes of a map that one instruction moves."""
        return ITEM[self.dtype] * self._instance[1]

    @property
    def is_resident(self) -> bool:
        return self.name.startswith("resident")

    @property
    def straddles(self) -> bool:
        """Whether its vectors may hold the end of one plane and the beginning of the next."""
        return ", true" in self.name

    @property
    def is_backward(self) -> bool:
        return "Backward" in self.name

    def count(self, opcodes: str) -> int:
        """Instructions that match, in it and in what it calls."""
        return sum(bool(re.match(opcodes, i.opcode)) for i in (*self.body, *self.called))

    def spilled(self, kind: str) -> int:
        """Bytes that it spills (STL) or loads again (LDL)."""
        return sum(i.width for i in (*self.body, *self.called) if i.address in self.spills and i.kind == kind)

    @functools.cached_property
    def loops(self) -> list[Loop]:
        """A resident kernel's loops over vectors of maps. None where a vector is as wide as an accumulator: loops over
        channels would look the same."""
        item = ITEM[self.dtype]
        if not self.is_resident or self.vector == max(4, item):
            return []
        found = [Loop(head, body, self.vector, item, self.is_backward) for head, body in loops_of(self.body)]
        found = [x for x in found if x.elements and not any(i.kind in TOGETHER for i in x.body)]
        heads = {x.head for x in found}
        return [x for x in found if not any(i.address in heads - {x.head} for i in x.body)]

    @functools.cached_property
    def main_loops(self) -> dict[str, Loop]:
        """Kind -> the dearest of those that do most at a time; what does not fill a batch is left to another one. Sums
        by threads that share a plane add each element once; those of groups, which end planes in any vector, twice."""
        found = {}
        for loop in sorted(self.loops, key=lambda x: (x.elements, x.plain)):
            shared = self.straddles and loop.kind == "reduce" and loop.additions == loop.elements
            found["lanes" if shared else loop.kind] = loop
        return {kind: found[kind] for kind in KINDS if kind in found}


def loops_of(code: Sequence[Instruction]) -> Iterator[tuple[int, tuple[Instruction, ...]]]:
    """The natural loops: their first address, and all instructions from which it is reached again."""
    at = {i.address: i for i in code}
    branches = [i for i in code if i.target is not None or i.kind in ENDS]
    starts = {code[0].address, *(i.address + BYTES for i in branches), *(i.target for i in branches if i.target in at)}
    blocks: dict[int, list[Instruction]] = {}
    for i in code:
        if i.address in starts:
            blocks[start := i.address] = []
        blocks[start].append(i)
    graph = networkx.DiGraph()
    graph.add_node(code[0].address)
    for start, block in blocks.items():
        if block[-1].kind not in ENDS or block[-1].conditional:
            graph.add_edges_from((start, way) for way in block[-1].ways if way in at)
    above = networkx.immediate_dominators(graph, code[0].address)

    def dominates(a: int, b: int | None) -> bool:
        while b is not None and b != a:
            b = above.get(b) if above.get(b) != b else None  # the first block has none above, or itself
        return b == a

    members: dict[int, set[int]] = {}
    for end, head in graph.edges:
        if end in above and dominates(head, end):
            inside = members.setdefault(head, {head})
            ahead = [end]
            while ahead:
                block = ahead.pop()
                if block not in inside:
                    inside.add(block)
                    ahead += graph.predecessors(block)
    for head, inside in members.items():
        yield head, tuple(i for start in sorted(inside) for i in blocks[start])


# --- Reading them


def tools() -> tuple[Path, Path]:
    """cuobjdump and nvdisasm: of a toolkit, or of PyPI's triton, which torch's CUDA builds bring along."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(p, "backends/nvidia/bin") for p in (spec.submodule_search_locations or [] if spec else [])]
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    folders += sorted(Path("/usr/local").glob("cuda*/bin"), reverse=True)
    for folder in folders:
        if all((folder / tool).exists() for tool in ("cuobjdump", "nvdisasm")):
            return folder / "cuobjdump", folder / "nvdisasm"
    raise Missing("no cuobjdump and nvdisasm: they come with a CUDA toolkit and with PyPI's triton")


def _run(*command: object, cwd: Path | None = None) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True, cwd=cwd).stdout


def _spills(elf: str) -> dict[str, set[int]]:
    """Kernel -> addresses of the instructions that the compiler has marked as spills and refills in a dump."""
    found: dict[str, set[int]] = {}
    kernel = ""
    for line in elf.splitlines():
        if line.startswith(".nv.info."):
            kernel = line.removeprefix(".nv.info.").strip()
        elif mark := re.search(r"SpillRefill\s*:\s*Offset : (0x[0-9a-f]+)", line):
            found.setdefault(kernel, set()).add(int(mark[1], 16))
    return found


def _functions(listing: Any) -> Iterator[tuple[str, list[Instruction]]]:
    for function in listing:
        found = []
        for n, i in enumerate(function["sass-instructions"]):
            operands = i.get("operands", "")
            conditional = "predicate" in i or "," in operands  # of a branch: BRA P0, 0x100 has its condition there
            found.append(Instruction(function["start"] + n * BYTES, i["opcode"], operands, conditional))
        yield function["function-name"], found


def kernels_of(cubin: Path) -> list[Kernel]:
    cuobjdump, nvdisasm = tools()
    registers = dict(re.findall(r"Function (\S+):\s+REG:(\d+)", _run(cuobjdump, "--dump-resource-usage", cubin)))
    spills = _spills(_run(cuobjdump, "-elf", cubin))
    about, listing = json.loads(_run(nvdisasm, "-json", cubin))
    bodies: dict[str, list[Instruction]] = {}
    called: dict[str, list[Instruction]] = {}
    kernel = ""
    for name, code in _functions(listing):
        if name.startswith("$"):  # a function of the kernel before it
            called[kernel] += code
        else:
            kernel = name
            bodies[kernel], called[kernel] = code, []
    return [
        Kernel(
            name,
            about[".note.nv.tkinfo"]["tki_toolVersion"],
            int(registers[name]),
            tuple(bodies[name]),
            tuple(called[name]),
            frozenset(spills.get(name, ())),
        )
        for name in bodies
    ]


def library() -> Path:
    """The built one."""
    spec = importlib.util.find_spec("eca_cuda")
    folders = spec.submodule_search_locations or [] if spec else []
    found = [path for folder in folders for path in Path(folder).glob("_C*.so")]
    if not found:
        raise Missing("eca_cuda is not built")
    return found[0]


def kernels(library: Path) -> list[Kernel]:
    """Those of the architecture that this library holds."""
    cuobjdump, _ = tools()
    listed = subprocess.run([str(cuobjdump), "--list-elf", str(library)], capture_output=True, text=True).stdout
    if ARCHITECTURE not in listed:
        raise Missing(f"{library.name} holds no code for {ARCHITECTURE}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        _run(cuobjdump, "-xelf", ARCHITECTURE, library, cwd=Path(folder))
        found = [k for some in pool.map(kernels_of, sorted(Path(folder).glob("*.cubin"))) for k in some]
    return sorted(found, key=lambda k: k.name)


# --- The page


def row(kernel: Kernel) -> str:
    def cost(kind: str) -> str:
        loop = kernel.main_loops.get(kind)
        if loop is None:
            return ""
        plain, all_ = (f"{loop.per_element(every_way):.1f}" for every_way in (False, True))
        return plain if plain == all_ else f"{plain} ({all_})"

    spills = f"{kernel.spilled('STL')} / {kernel.spilled('LDL')}"
    return f"| `{kernel.name}` | {kernel.registers} | {spills} | " + " | ".join(map(cost, KINDS)) + " |"


def table(found: Sequence[Kernel]) -> str:
    """What docs/budget.md shows, from its marker on."""
    lines = [
        MARKER,
        "",
        f"{ARCHITECTURE}, {found[0].compiler}:",
        "",
        f"| kernel | registers | spilled / loaded again, bytes | {' | '.join(KINDS)} |",
        "| --- | --- | --- |" + " --- |" * len(KINDS),
        *(row(kernel) for kernel in found if kernel.passes_over_maps),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sass", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"rewrite the table of {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    try:
        text = table(kernels(library()))
    except Missing as reason:
        parser.exit(1, f"{reason}\n")
    if write:
        PAGE.write_text(PAGE.read_text().split(MARKER)[0] + text)
    else:
        print(text)


if __name__ == "__main__":
    main()
