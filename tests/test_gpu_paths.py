# SPDX-License-Identifier: MIT
"""What ``make gpu`` runs goes every way through the kernels: as the launch plan of an H100 and of an H200 has it, which
needs no GPU."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import test_cuda
import test_cuda_bits
import torch

from benchmarks.gpu import small_calls
from eca_cuda._ext import _C
from eca_cuda.testing import ECA, MULTI_KERNEL, VARIANTS, Variant

# As the pages have them, and as a launch does, which knows of no rate.
DEVICES = {device["name"]: device for device in _C.devices() if device["name"] in ("h100", "h200")}
DEVICES["launch"] = DEVICES["h200"] | {"copy_rate": 0}
LAYOUTS = ("contiguous", "channels_last")

RESIDENT = {"clusters", "pieces", "turns", "a slab used again", "rows of 1", "rows of 4"}
RESIDENT |= {"threads to a plane", "planes to a thread", "parked"}

Call = tuple[Variant, tuple[int, ...], torch.dtype, str]  # the last is the layout


@pytest.fixture(params=DEVICES)
def gpu(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    yield DEVICES[request.param]
    _C.set_tuning([])


def plans(call: Call, gpu: dict[str, Any]) -> list[dict[str, Any]]:
    """Forward and backward."""
    variant, (n, c, *space), dtype, layout = call
    options = {"kernel_size": 7 if variant is MULTI_KERNEL else 5, "hidden": c // 16}
    what = (n, c, math.prod(space), str(dtype).removeprefix("torch."), layout, variant.name)
    return [_C.plan(*what, direction, gpu, **options)["resident"] for direction in ("forward", "backward")]


def ways(call: Call, gpu: dict[str, Any]) -> set[str]:
    """What happens in this call."""
    n, found = call[1][0], set()
    for plan in plans(call, gpu):
        if not plan["possible"]:
            found.add("two-phase")
            continue
        happens = {
            "clusters": plan["ranks"] > 1,
            "clusters take turns": plan["ranks"] > 1 and n > plan["clusters"],
            "pieces": plan["slab_bytes"] > plan["piece_bytes"],
            "turns": n > plan["clusters"],
            "a slab used again": plan["stages"] == 2 and n > 2 * plan["clusters"],
            "threads to a plane": plan["straddle"] and plan["lanes"] > 0,
            "planes to a thread": plan["straddle"] and plan["lanes"] == 0,
            "parked": plan["parked"],
            "kept": plan["kept_rows"] > 0,
            f"rows of {plan['vector']}": call[3] == "channels_last",  # elements to a vector
        }
        found |= {way for way in happens if happens[way]}
    return found


def all_ways(calls: Iterable[Call], gpu: dict[str, Any]) -> set[str]:
    return set().union(*(ways(call, gpu) for call in calls))


@pytest.mark.parametrize("dtype", small_calls.DTYPES, ids=str)
def test_the_sanitizers_see_every_way(dtype: torch.dtype, gpu: dict[str, Any]) -> None:
    """In each dtype, which has kernels of its own."""
    _C.set_tuning(list(small_calls.RULES))
    calls = itertools.product(VARIANTS, small_calls.SHAPES, [dtype], LAYOUTS)
    assert RESIDENT | {"two-phase", "kept", "clusters take turns"} <= all_ways(calls, gpu)


def test_every_way_is_held_to_the_bits_of_the_emulated_device(gpu: dict[str, Any]) -> None:
    """But kept parameters, which plain ECA, the gate there, has none of; ``offset`` is two-phase anyhow."""
    calls = [(ECA, *call) for call in test_cuda_bits.CALLS if call[2] in LAYOUTS]
    assert RESIDENT | {"two-phase"} <= all_ways(calls, gpu)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_samples_take_turns_on_clusters_of_every_size(ranks: int, gpu: dict[str, Any]) -> None:
    found = set()
    for stages, layout in itertools.product((1, 2), LAYOUTS):
        _C.set_tuning(test_cuda.rules_for_turns(ranks, stages=stages))
        call = (MULTI_KERNEL, test_cuda.TURNS, torch.float16, layout)
        for plan in plans(call, gpu):
            assert (plan["ranks"], plan["stages"], plan["threads"]) == (ranks, stages, 512)
            assert test_cuda.TURNS[0] > stages * plan["clusters"]
        found |= ways(call, gpu)
        _C.set_tuning(test_cuda.rules_for_turns(ranks, persistent=-1))
        assert all(plan["clusters"] == test_cuda.TURNS[0] and plan["ranks"] == ranks for plan in plans(call, gpu))
    assert {"turns", "a slab used again", "parked", "kept"} <= found
    assert ("planes to a thread" if ranks == 1 else "threads to a plane") in found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_31_bits_of_elements_stay_resident(layout: str, gpu: dict[str, Any]) -> None:
    assert math.prod(test_cuda.LARGE) > 1 << 31
    for plan in plans((ECA, test_cuda.LARGE, torch.float16, layout), gpu):
        assert plan["possible"] and plan["clusters"] < test_cuda.LARGE[0]
