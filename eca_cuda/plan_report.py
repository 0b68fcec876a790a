# SPDX-License-Identifier: MIT
"""``python -m eca_cuda.info --plan N C H W DTYPE``: the launch plan of the CUDA kernels for a call."""

import argparse
import json
from collections.abc import Sequence
from typing import Any, Optional

import torch

from ._ext import _C
from .variants.eca import adaptive_kernel_size

OPTIONS = ("layout", "variant", "direction", "relu", "residual", "device")  # they need --plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the report."""
    group = parser.add_argument_group("launch plan")
    group.add_argument(
        "--plan", nargs=5, metavar=("N", "C", "H", "W", "DTYPE"), help="show the plan for maps [N, C, H, W]"
    )
    group.add_argument("--layout", help="contiguous (default) or channels_last")
    group.add_argument("--variant", help="eca (default), multi_kernel_eca or bidirectional_eca")
    group.add_argument("--direction", help="forward (default) or backward")
    group.add_argument("--relu", action="store_true", help='with activation="relu"')
    group.add_argument("--residual", action="store_true", help="with a residual; in backward with its gradient")
    known = ", ".join(device["name"] for device in _C.devices())
    group.add_argument("--device", help=f"{known} (default: this GPU, or h100 without one)")


def report(options: argparse.Namespace) -> str:
    """The report for the parsed options, as text or JSON. Raises ValueError."""
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name)}
    facts = collect(_shape(options.plan[:4]), options.plan[4], **given)
    return json.dumps(facts, indent=2) if options.json else text(facts)


def collect(
    shape: Sequence[int],
    dtype: str,
    *,
    layout: str = "contiguous",
    variant: str = "eca",
    direction: str = "forward",
    relu: bool = False,
    residual: bool = False,
    device: Optional[str] = None,
) -> dict[str, Any]:
    """The call, the device and the plan as JSON-ready values, for the modules' default parameter sizes."""
    n, c, h, w = shape
    chosen, origin = find_device(device)
    call = {"variant": variant, "direction": direction, "relu": relu, "residual": residual}
    kernel_size = {"eca": adaptive_kernel_size(max(c, 1)), "multi_kernel_eca": 7}.get(variant, 3)
    hidden = c // 16 if variant == "bidirectional_eca" else 0
    plan = _C.plan(n, c, h * w, dtype, layout, device=chosen, kernel_size=kernel_size, hidden=hidden, **call)
    return {
        "call": {"shape": list(shape), "dtype": dtype, "layout": layout, **call},
        "device": {**chosen, "origin": origin},
        "plan": plan,
    }


def find_device(name: Optional[str]) -> tuple[dict[str, Any], str]:
    """The properties of the device ``name``, or of this GPU, or of an H100; and their origin."""
    known: dict[str, dict[str, Any]] = {device["name"]: device for device in _C.devices()}
    if name is not None:
        if name not in known:
            raise ValueError(f"device: expected one of {', '.join(known)}, got {name!r}")
        return known[name], "by its public figures"
    here = _C.device() if torch.cuda.is_available() else None
    if here is None:
        return known["h100"], "by its public figures, because no GPU is visible here"
    return here | {"name": torch.cuda.get_device_name()}, "the GPU here"


def text(facts: dict[str, Any]) -> str:
    """The facts as text."""
    call, plan = facts["call"], facts["plan"]
    epilogue = "".join(f" + {name}" for name in ("residual", "relu") if call[name])
    lines = {
        "call": f"{call['variant']} {call['direction']}{epilogue} of {call['shape']} {call['dtype']} {call['layout']}",
        "device": f"{facts['device']['name']}, {facts['device']['origin']}",
        "path": f"{plan['path']}: {plan['reason']}",
    }
    if plan["path"] == "one_pass":
        parts = plan["position_parts"]
        shared_out = f"{plan['channels']} channels x {plan['positions']} positions"
        lines["sample"] = f"{plan['blocks_per_sample']} blocks, {parts} to a strip, each with {shared_out}"
        lines["block"] = f"{plan['threads']} threads; {plan['blocks_per_multiprocessor']} on each multiprocessor"
        loads = "one bulk copy each" if plan["bulk"] else "16 bytes for each thread at a time"
        lines["kept"] = f"{plan['slabs']} maps, {_bytes(plan['slab_bytes'])} each, by {loads}"
    if plan["path"] == "two_phase":
        tiling = plan["tiling"]
        lines["sample"] = f"{tiling['count']} tiles of {tiling['channels']} channels x {tiling['positions']} positions"
        lines["block"] = f"{plan['threads']} threads; {plan['grid']} blocks in all"
        lines["order"] = f"{plan['tickets']} visits of tiles; before the first second one {plan['lag']} first ones"
    if plan["path"] != "nothing":
        lines["shared memory"] = f"{_bytes(plan['shared_bytes'])} a block"
    return "\n".join(f"{name + ':':15}{line}" for name, line in lines.items())


def _shape(values: Sequence[str]) -> list[int]:
    for name, value in zip(("N", "C", "H", "W"), values, strict=True):
        if not value.isdecimal():
            raise ValueError(f"{name}: expected an integer from 0 on, got {value!r}")
    return [int(value) for value in values]


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
