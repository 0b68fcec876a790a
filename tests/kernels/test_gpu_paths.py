# SPDX-License-Identifier: MIT
"""The calls of ``make gpu`` go every way through the kernels, by the launch plans of an H100 and an H200; no GPU is
needed."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import small_calls
import test_cuda
import test_cuda_bits
import torch

from eca_cuda._ext import _C
from eca_cuda.testing import ECA, MULTI_KERNEL, VARIANTS, Variant

LAYOUTS = ("contiguous", "channels_last")
KERNEL_SIZES = {"eca": 5, "multi_kernel_eca": 7, "bidirectional_eca": 3}  # as make_parameters chooses

OF_BOTH = {"one block", "halos", "x kept", "x streamed", "x streamed, relu"}
OF_PLANES, OF_ROWS = {"straddling", "lanes in several warps"}, {"position parts", "halos and position parts"}
WAYS = {f"{way}, contiguous" for way in OF_BOTH | OF_PLANES} | {f"{way}, channels_last" for way in OF_BOTH | OF_ROWS}
WAYS |= {"two-phase, straddling", "two-phase, vectors", "two-phase, single elements"}

Call = tuple[Variant, tuple[int, ...], torch.dtype, str, bool]  # a layout, and whether there is a ReLU


@pytest.fixture(params=["h100", "h200"])
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param
    _C.set_tuning([])


def plans(call: Call, gpu: str, residual: bool = False) -> list[dict[str, Any]]:
    """The plans of forward and backward."""
    variant, (n, c, *space), dtype, layout, relu = call
    options: dict[str, Any] = {"kernel_size": KERNEL_SIZES[variant.name], "hidden": c // 16}
    options |= {"relu": relu, "residual": residual, "gaps": layout == "gaps"}
    layout = "contiguous" if layout == "gaps" else layout
    what = (n, c, math.prod(space), str(dtype).removeprefix("torch."), layout, variant.name)
    return [_C.plan(*what, direction, gpu, **options) for direction in ("forward", "backward")]


def ways(call: Call, gpu: str, residual: bool = False) -> set[str]:
    """The ways that a call takes through the kernels."""
    forward, backward = plans(call, gpu, residual)
    relu, layout, found = call[-1], call[-2], set()
    for plan in (forward, backward):
        if plan["path"] == "two_phase":
            kind = "straddling" if plan["straddle"] else "single elements" if plan["vector"] == 1 else "vectors"
            happens = {kind: True, "parts of planes": plan["layout"] == "planes" and plan["tiling"]["blocks"] > 1}
            found |= {f"two-phase, {way}" for way in happens if happens[way]}
            continue
        columns, parts = plan["blocks_per_sample"] // plan["position_parts"], plan["position_parts"] > 1
        happens = {
            "one block": plan["blocks_per_sample"] == 1,
            "halos": columns > 1 and not parts,
            "position parts": columns == 1 and parts,
            "halos and position parts": columns > 1 and parts,
            "straddling": plan["straddle"],
            "lanes in several warps": plan["lanes"] > 32,
            "x kept": plan["keeps_x"],
            "x streamed": plan is backward and not plan["keeps_x"] and not relu,
            "x streamed, relu": plan is backward and not plan["keeps_x"] and relu,
        }
        found |= {f"{way}, {layout}" for way in happens if happens[way]}
        assert plan["bulk"] == (layout == "contiguous"), "rows: threads' own copies"
    if forward["path"] == "one_pass" and residual:
        found.add("residual kept" if forward["keeps_extra"] else "residual streamed")
    return found


def all_ways(calls: Iterable[Call], gpu: str, residual: bool = False) -> set[str]:
    return set().union(*(ways(call, gpu, residual) for call in calls))


@pytest.mark.parametrize("dtype", small_calls.DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_sanitizers_see_every_way(variant: Variant, dtype: torch.dtype, gpu: str) -> None:
    """Every gate in every dtype takes every way, as each has kernels of its own."""
    _C.set_tuning(small_calls.RULES)
    plain, fused = ([(variant, *shape, relu) for shape in calls_in(dtype)] for relu in (False, True))
    found = all_ways(plain, gpu) | all_ways(fused, gpu, residual=True)
    assert found >= WAYS | {"residual kept", "residual streamed"}
    assert all(plan["path"] == "two_phase" for call in plain if call[3] == "gaps" for plan in plans(call, gpu))


def calls_in(dtype: torch.dtype) -> list[tuple[tuple[int, ...], torch.dtype, str]]:
    return [(shape, dtype, layout) for shape, layout in small_calls.CALLS]


@pytest.mark.parametrize("dtype", small_calls.DTYPES, ids=str)
def test_every_way_is_held_to_the_bits_of_the_emulated_device(dtype: torch.dtype, gpu: str) -> None:
    _C.set_tuning(small_calls.RULES)
    calls = [(ECA, *call) for call in test_cuda_bits.CALLS if call[1] == dtype and call[2] in LAYOUTS]
    assert all_ways(calls, gpu) >= WAYS | {"two-phase, parts of planes"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blocks", test_cuda.BLOCKS)
def test_clusters_of_every_size(blocks: int, layout: str, gpu: str) -> None:
    for parts in test_cuda.parts_of(blocks, layout):
        _C.set_tuning(test_cuda.rules_for(blocks, parts))
        for plan in plans((MULTI_KERNEL, test_cuda.SHAPE, torch.float16, layout, False), gpu):
            assert (plan["blocks_per_sample"], plan["position_parts"]) == (blocks, parts)
            assert plan["straddle"] == (layout == "contiguous")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_than_31_bits_of_elements_take_one_pass(layout: str, gpu: str) -> None:
    assert math.prod(test_cuda.LARGE) > 1 << 31
    call = (ECA, test_cuda.LARGE, torch.float16, layout, False)
    assert [plan["path"] for plan in plans(call, gpu)] == ["one_pass", "one_pass"]
