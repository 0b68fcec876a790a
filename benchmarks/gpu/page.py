# SPDX-License-Identifier: MIT
"""The part of docs/gpu.md that results make: one section for every GPU that has a result file."""

from collections.abc import Mapping

from ..results import Results
from .tables import GPU_TABLES

BEGIN, END = "<!-- gpu:begin -->\n", "<!-- gpu:end -->"
NOTHING = "No GPU has been measured yet.\n"

# What stands above each table of a section.
_HEADINGS = {
    "gpu-goals": "Goals",
    "gpu-limit": "Copies: the limit, in GB/s, counting what is read and what is written",
    "gpu-layers": "Layers: median times of replayed graphs",
    "gpu-shares": "Ours, as a share of the rate of a copy of the same size",
    "gpu-launches": "Single calls at batch 1",
    "gpu-networks": "ResNet-50-D: what attention adds, in per cent of the network without it",
    "gpu-clusters": "Clusters that run at once, as the driver counts them",
    "gpu-explored": "Other launch plans: ranks, stages, threads",
    "gpu-checks": "What ran and how it ended",
}
_PICTURES = {"share": "share of the limit per layer", "time": "time against size", "cost": "cost of attention"}


def is_gpu(results: Results) -> bool:
    """Whether results are those of a GPU."""
    return "gpu" in results.environment


def rebuild(text: str, by_stem: Mapping[str, Results]) -> str:
    """``text`` with the sections of these results between its two marks; ValueError if it has none."""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        raise ValueError(f"expected {BEGIN.strip()} and {END}, got none")
    sections = "\n".join(_section(stem, results) for stem, results in sorted(by_stem.items()))
    return text[: begin + len(BEGIN)] + (sections or NOTHING) + text[end:]


def _section(stem: str, results: Results) -> str:
    name = results.environment["gpu"]["name"]
    parts = [f"### {name}", GPU_TABLES["gpu-environment"](results)]
    files = [f"[{stem}.json](../benchmarks/results/{stem}.json)"]
    files += [f"[{what}](../benchmarks/results/{stem}-{picture}.png)" for picture, what in _PICTURES.items()]
    parts.append("Files: " + ", ".join(files) + ".")
    for table, heading in _HEADINGS.items():
        parts += [f"**{heading}**", GPU_TABLES[table](results)]
    return "\n\n".join(parts) + "\n"
