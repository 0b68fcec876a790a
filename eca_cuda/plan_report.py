# SPDX-License-Identifier: MIT
"""``python -m eca_cuda.info --plan N C H W DTYPE``: how the CUDA kernels would do a call, and what that should cost."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any, Optional

import torch

from ._ext import _C
from .modules import adaptive_kernel_size

OPTIONS = ("layout", "variant", "direction", "relu", "residual", "device")  # those that need --plan
_ITEM_SIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
# What no measurement has been held against yet. The floor in bytes is arithmetic.
_PREDICTED = ("memory_bytes", "l2_bytes", "predicted_us", "share_of_copy_rate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the report."""
    group = parser.add_argument_group("launch plan")
    group.add_argument("--plan", nargs=5, metavar=("N", "C", "H", "W", "DTYPE"), help="how maps [N, C, H, W] are done")
    group.add_argument("--layout", help="contiguous (default) or channels_last")
    group.add_argument("--variant", help="eca (default), multi_kernel_eca or bidirectional_eca")
    group.add_argument("--direction", help="forward (default) or backward")
    group.add_argument("--relu", action="store_true", help='with activation="relu"')
    group.add_argument("--residual", action="store_true", help="with a residual, which in backward wants its gradient")
    known = ", ".join(device["name"] for device in _C.devices())
    group.add_argument("--device", help=f"{known}; default: the GPU here, or else h100")


def report(options: argparse.Namespace) -> str:
    """What the parsed options ask for, as text or JSON; ValueError for what makes no sense."""
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
    """The call, the device and the plan as JSON-ready values, for parameters of the sizes that the modules choose."""
    n, c, h, w = shape
    chosen, origin = find_device(device)
    call = {"variant": variant, "direction": direction, "relu": relu, "residual": residual}
    kernel_size = {"eca": adaptive_kernel_size(max(c, 1)), "multi_kernel_eca": 7}.get(variant, 3)
    plan = _C.plan(n, c, h * w, dtype, layout, device=chosen, kernel_size=kernel_size, hidden=c // 16, **call)
    if not chosen["copy_rate"]:
        plan["floor_us"] = plan["predicted_us"] = None
    plan["share_of_copy_rate"] = plan["floor_us"] / plan["predicted_us"] if plan["predicted_us"] else None
    return {
        "call": {"shape": list(shape), "dtype": dtype, "layout": layout, **call},
        "device": {**chosen, "origin": origin},
        "plan": plan,
        "not_measured": [*_PREDICTED] if chosen["measured"] else [*_PREDICTED, "floor_us"],
    }


def find_device(name: Optional[str]) -> tuple[dict[str, Any], str]:
    """The figures of the device called ``name``, or of the GPU here, or of an H100; and where they come from."""
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
    """The facts for people. A star marks what nobody has measured."""
    call, plan = facts["call"], facts["plan"]
    star = {key: "*" if key in facts["not_measured"] else "" for key in plan}
    epilogue = "".join(f" + {name}" for name in ("residual", "relu") if call[name])
    lines = {
        "call": f"{call['variant']} {call['direction']}{epilogue} of {call['shape']} {call['dtype']} {call['layout']}",
        "device": f"{facts['device']['name']}, {facts['device']['origin']}",
        "path": f"{plan['path']}: {plan['reason']}",
    }
    if plan["path"] != "nothing":
        lines |= _work(call, plan)
        lines["bytes"] = (
            f"floor {_bytes(plan['floor_bytes'])}; from and to memory {_bytes(plan['memory_bytes'])}"
            f"{star['memory_bytes']}; between L2 and multiprocessors {_bytes(plan['l2_bytes'])}{star['l2_bytes']}"
        )
        lines["time"] = "not predicted: the copy rate of this device is not known"
    if plan["predicted_us"]:
        lines["time"] = (
            f"floor {plan['floor_us']:.1f} us{star['floor_us']}; the call {plan['predicted_us']:.1f} us"
            f"{star['predicted_us']}, {plan['share_of_copy_rate']:.1%}{star['share_of_copy_rate']} of the copy rate"
        )
        lines["*"] = "a prediction that no measurement backs; it counts bytes and waiting, not instructions"
    lines |= _resident(plan["resident"], star)
    return "\n".join(f"{name + ':':15}{line}" for name, line in lines.items())


def _resident(resident: dict[str, Any], star: dict[str, str]) -> dict[str, str]:
    """What comes first: the path above is taken where this one can't be."""
    if not resident["possible"]:
        return {"resident": f"no: {resident['reason']}"}
    lines = {"resident": f"yes, and so instead of the path above: {resident['text'].removeprefix('resident, ')}"}
    if resident["predicted_us"]:
        share = resident["floor_us"] / resident["predicted_us"]
        mark = star["predicted_us"]
        lines["resident time"] = f"the call {resident['predicted_us']:.1f} us{mark}, {share:.1%}{mark} of the copy rate"
    return lines


def _work(call: dict[str, Any], plan: dict[str, Any]) -> dict[str, str]:
    tiling, item = plan["tiling"], _ITEM_SIZE[call["dtype"]]
    _, c, h, w = call["shape"]
    channels, positions = min(tiling["channels"], c), min(tiling["positions"], h * w)
    together = f", {plan['lanes']} of them to a plane" if plan["layout"] == "planes" else ""
    gate = "in it" if plan["shared"]["gate"] >= 0 else "in global memory"
    return {
        "tiles": f"{tiling['count']} a sample, of {channels} channels x {positions} positions, "
        f"{_bytes(channels * positions * item)}; partial sums of a channel: {tiling['blocks']}",
        "grid": f"{plan['blocks']} blocks of {plan['threads']} threads{together}",
        "order": f"{plan['tickets']} visits of tiles; before the first second one {plan['lag']} first ones",
        "vector": f"{plan['vector']} elements, {plan['vector'] * item} bytes, along {plan['layout']}",
        "shared memory": f"{_bytes(plan['shared']['total'])} a block; {plan['gate_numbers']} gate numbers {gate}",
    }


def _shape(values: Sequence[str]) -> list[int]:
    for name, value in zip(("N", "C", "H", "W"), values, strict=True):
        if not value.isdecimal():
            raise ValueError(f"{name}: expected an integer from 0 on, got {value!r}")
    shape = [int(value) for value in values]
    if math.prod(max(size, 1) for size in shape) > 2**40:
        raise ValueError(f"N C H W: expected at most 2^40 elements, got {' x '.join(values)}")
    return shape


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
