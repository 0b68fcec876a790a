# SPDX-License-Identifier: MIT
"""What the results of GPUs make of two pages: a section of docs/gpu.md for each GPU, and one for all in README.md."""

from collections.abc import Callable, Mapping

from ..results import Results
from .summary import readme
from .tables import GPU_TABLES

NOTHING = "No GPU has run these kernels yet, so no GPU speed is claimed.\n"

# What stands above each table of a section.
_HEADINGS = {
    "gpu-goals": "Goals",
    "gpu-limit": "Copies: the limit, in GB/s, counting what is read and what is written",
    "gpu-layers": "Layers: median times of replayed graphs",
    "gpu-other-layers": "Other dtypes, layouts, passes and layers",
    "gpu-two-phase": "The one-pass kernels and their two-phase substitute",
    "gpu-shares": "Ours, as a share of the rate of a copy of the same size",
    "gpu-launches": "Single calls at batch 1",
    "gpu-networks": "ResNet-50-D: what attention adds, as a share of the network without it",
    "gpu-sweep": "Launch plans, `blocks/parts/threads`, as a share of the rate of a copy",
    "gpu-profiled": "Kernels under ncu",
    "gpu-refusals": "Providers that could not do a job",
    "gpu-checks": "What ran and how it ended",
}
_PICTURES = {"share": "share of the limit per layer", "time": "time against size", "cost": "cost of attention"}


def is_gpu(results: Results) -> bool:
    """Whether results are those of a GPU."""
    return "gpu" in results.environment


def rebuild(text: str, mark: str, by_stem: Mapping[str, Results]) -> str:
    """``text`` with these results between ``<!-- mark:begin -->`` and its end; ValueError if it has no such lines.

    The mark chooses what is shown: ``gpu`` everything, ``gpu-readme`` a summary.
    """
    begin_line, end_line = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->"
    begin, end = text.find(begin_line), text.find(end_line)
    if not 0 <= begin < end:
        raise ValueError(f"expected {begin_line.strip()} and {end_line}, got none")
    shown = _MAKERS[mark](dict(sorted(by_stem.items()))) if by_stem else NOTHING
    return text[: begin + len(begin_line)] + shown + text[end:]


def _section(stem: str, results: Results) -> str:
    name = results.environment["gpu"]["name"]
    parts = [f"### {name}", GPU_TABLES["gpu-environment"](results)]
    files = [f"[{stem}.json](../benchmarks/results/{stem}.json)"]
    files += [f"[{what}](../benchmarks/results/{stem}-{picture}.png)" for picture, what in _PICTURES.items()]
    parts.append("Files: " + ", ".join(files) + ".")
    for table, heading in _HEADINGS.items():
        parts += [f"**{heading}**", GPU_TABLES[table](results)]
    return "\n\n".join(parts) + "\n"


_MAKERS: dict[str, Callable[[Mapping[str, Results]], str]] = {
    "gpu": lambda by_stem: "\n".join(_section(stem, results) for stem, results in by_stem.items()),
    "gpu-readme": lambda by_stem: readme(list(by_stem.values())),
}
