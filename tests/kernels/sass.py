# SPDX-License-Identifier: MIT
"""Reads the machine code of the CUDA kernels from a built library: registers, spills, barriers, memory accesses. It
needs NVIDIA's two disassemblers, and no GPU.

    python -m tests.kernels.sass [--write]     prints the table of docs/budget.md, or rewrites it

Spills are the accesses that the compiler marks as such. Local memory of an object, such as an executor, is no spill.
"""

import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/budget.md"
MARKER = "<!-- from here on: python -m tests.kernels.sass --write -->"
ARCHITECTURE, WALKS = "sm_90", ("planes", "straddling", "rows")
MAP_STORE = r"STG?\..*\b128"
ARRIVAL = r"SYNCS.*TRYWAIT|DEPBAR"  # of what was asked for asynchronously
CP_ASYNC = r"LDGDEPBAR|DEPBAR"  # 16-byte copies to shared memory are all asked for, or awaited


class Missing(Exception):
    """The library or a disassembler is missing."""


@dataclass(frozen=True, eq=False)
class Instruction:
    address: int
    opcode: str
    operands: str
    conditional: bool

    def next(self) -> list[int]:
        """The next addresses. Ignores calls, and BRA.DIV, which only diverged warps take."""
        kind = self.opcode.split(".")[0]
        if kind in ("BRX", "JMX", "JMP"):
            raise NotImplementedError(f"where does {self.opcode} go?")
        on = [self.address + 16] if self.conditional or kind not in ("BRA", "EXIT", "RET", "BPT") else []
        target = re.search(r"0x([0-9a-f]+)$", self.operands) if kind == "BRA" and "DIV" not in self.opcode else None
        return [*on, int(target[1], 16)] if target else on


@dataclass(frozen=True, eq=False)
class Kernel:
    name: str  # as in the source, without namespaces and arguments
    compiler: str
    registers: int
    code: tuple[Instruction, ...] = field(repr=False)  # and, after it, that of the functions it calls
    spills: frozenset[int] = field(repr=False)  # addresses

    def all(self, opcodes: str) -> list[Instruction]:
        return [i for i in self.code if re.match(opcodes, i.opcode)]

    def spilled(self) -> int:
        return sum(i.address in self.spills for i in self.all("STL|LDL"))

    def ways(self, without: str = "$") -> networkx.DiGraph:
        """From instruction to instruction: what is reached from the first one, past none of these."""
        at = {i.address: i for i in self.code if not re.match(without, i.opcode)}
        graph = networkx.DiGraph((i, at[way]) for i in at.values() for way in i.next() if way in at)
        return networkx.DiGraph(graph.subgraph({self.code[0], *networkx.descendants(graph, self.code[0])}))

    def most(self, opcode: str, without: str = "$") -> int:
        """The most of these on any path from the first instruction to an end. One in a loop counts as a thousand."""
        ways = networkx.condensation(self.ways(without))  # its nodes are loops, and what is in none
        for _, node, edge in ways.edges(data=True):
            loop = ways.nodes[node]["members"]
            edge["n"] = sum(bool(re.match(opcode, i.opcode)) for i in loop) * (1000 if len(loop) > 1 else 1)
        return int(networkx.dag_longest_path_length(ways, "n"))

    def barriers(self) -> int:
        """The most barriers of a block on any path. Planes come by bulk copies on this architecture, not cp.async."""
        return self.most("BAR", CP_ASYNC if "rows" not in self.name else "$")

    def before_stores(self, opcodes: str) -> list[Instruction]:
        """Those between any arrival of memory and the next store to a map."""
        ways = self.ways()
        arrivals, stores = ([i for i in ways if re.match(kind, i.opcode)] for kind in (ARRIVAL, MAP_STORE))
        ways.remove_edges_from([*ways.out_edges(stores)])
        between = set().union(*(networkx.descendants(ways, i) for i in arrivals))
        between &= set().union(*(networkx.ancestors(ways, i) for i in stores))
        return [i for i in self.all(opcodes) if i in between]

    def narrow(self) -> list[Instruction]:
        """Accesses to global memory of fewer than 16 bytes, in loops that store maps; but bytes are signs of 16."""
        loops = [loop for loop in networkx.strongly_connected_components(self.ways()) if len(loop) > 1]
        visits = set().union(*(loop for loop in loops if any(re.match(MAP_STORE, i.opcode) for i in loop)))
        return [i for i in self.all(r"(LD|ST)G?\.(?!.*\b(128|U8))") if i in visits]


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


def run(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


def kernels_of(cubin: Path) -> list[Kernel]:
    cuobjdump, nvdisasm = tools()
    registers = dict(re.findall(r"Function (\S+):\s+REG:(\d+)", run(cuobjdump, "--dump-resource-usage", cubin)))
    marks: dict[str, str] = dict(re.findall(r"(?ms)^\.nv\.info\.(\S+)\n(.*?)(?=^\.|\Z)", run(cuobjdump, "-elf", cubin)))
    about, listing = json.loads(run(nvdisasm, "-json", cubin))
    codes: dict[str, list[Instruction]] = {}
    for function in listing:
        if not function["function-name"].startswith("$"):  # else the kernel before it calls it
            code = codes[function["function-name"]] = []
        for at, i in zip(itertools.count(function["start"], 16), function["sass-instructions"], strict=False):
            operands = i.get("operands", "")  # BRA P0, 0x100 has its condition there
            code.append(Instruction(at, i["opcode"], operands, "predicate" in i or "," in operands))
    compiler, found = about[".note.nv.tkinfo"]["tki_toolVersion"], []
    for symbol, code in codes.items():
        name = re.sub(r"\(anon\w+ namespace\)::|\w+::|^void |(?<=Gate)<\w+>", "", run("c++filt", symbol))
        name = re.sub(r"\(Walk\)(\d)", lambda found: WALKS[int(found[1])], name).rpartition("(")[0]
        spills = re.findall(r"SpillRefill\s*:\s*Offset : (0x\w+)", marks.get(symbol, ""))
        found += [Kernel(name, compiler, int(registers[symbol]), tuple(code), frozenset(int(s, 16) for s in spills))]
    return found


def kernels() -> list[Kernel]:
    """The kernels of the built library for the architecture, without float64, which is for checking gradients."""
    built = next(ROOT.glob("eca_cuda/_C*.so"), None)
    if not built:
        raise Missing("eca_cuda is not built")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([tools()[0], "-xelf", ARCHITECTURE, built], capture_output=True, cwd=folder)
        found = [k for cubin in Path(folder).glob("*.cubin") for k in kernels_of(cubin)]
    if not found:
        raise Missing(f"{built.name} holds no code for {ARCHITECTURE}")
    return sorted((k for k in found if "double" not in k.name), key=lambda k: k.name)


def table(found: list[Kernel]) -> str:
    """The table of docs/budget.md after its marker: ranges over dtypes, layouts and vectors."""
    lines = [MARKER, "", f"{ARCHITECTURE}, {found[0].compiler}:", ""]
    lines += ["| kernels | registers | blocks | barriers | spills |", "| --- | --- | --- | --- | --- |"]
    for family, some in itertools.groupby(found, lambda k: re.sub(r"(?<=Gate),.*|<(?!.*Gate).*", "", k.name)):
        same = list(some)
        threads = 512 if re.search("Gate|statistics|weight_gradients", family) else 256
        blocks = [65536 // (threads * -(-k.registers // 8) * 8) for k in same if "parameter" not in family]
        barriers = [k.barriers() for k in same if "Gate" in family]
        columns = [k.registers for k in same], blocks, barriers, [k.spilled() for k in same]
        ranges = ["–".join(map(str, sorted({*x} & {min(x, default=0), max(x, default=0)}))) for x in columns]
        lines.append(f"| {family.replace('<', ', ')}: {len(same)} | {' | '.join(ranges)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(PAGE.read_text().split(MARKER)[0] + table(kernels()))
    else:
        print(table(kernels()))
