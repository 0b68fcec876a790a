# SPDX-License-Identifier: MIT
"""The resident kernels on the emulated device: every sample in the shared memory of one block, or of the blocks of a
cluster, with one slab per block or several, for every gate, dtype and layout; and every way through the kernels."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import emulated
import pytest
import torch
from cases import CASES, DEFAULTS, Case
from gradients import check_gradient_rows
from layouts import LAYOUTS

from eca_cuda._ext import _C
from eca_cuda.testing import BIDIRECTIONAL, MULTI_KERNEL, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

BY_NAME = {str(case): case for case in CASES}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Shared memory per block decides how many blocks a sample needs, multiprocessors how many samples are under way.
DEVICES: dict[str, dict[str, int]] = {
    "one-block": {"shared": 64 << 10, "multiprocessors": 2},
    "many-stages": {"shared": 20 << 10, "multiprocessors": 1},
    "ampere": {"shared": 20 << 10, "multiprocessors": 1, "capability": 86},
    "clusters": {"shared": 7 << 10, "multiprocessors": 6},  # of two blocks or more, each for several samples
    "large-clusters": {"shared": 5 << 10, "multiprocessors": 32},
}


@contextmanager
def on(gpu: Mapping[str, int], rules: list[dict[str, Any]] | None = None) -> Iterator[None]:
    """The emulated device is this one, and plans follow these rules."""
    emulated.set_device(**gpu)
    emulated.set_tuning(rules or [])
    try:
        yield
    finally:
        emulated.set_device()
        emulated.set_tuning([])


@pytest.fixture(params=DEVICES)
def run(request: pytest.FixtureRequest) -> Iterator[str]:
    with on(DEVICES[request.param]), emulated.emulated():
        yield request.param


def plan_of(gpu: Mapping[str, int], shape: tuple[int, ...], memory: str, case: Case, **call: Any) -> dict[str, Any]:
    """The plan of a call with relu and residual."""
    k = 7 if case.variant is MULTI_KERNEL else case.inputs(shape)[1][0].shape[-1]
    options = {"relu": True, "residual": True, "kernel_size": k, "hidden": case.shape_options.get("hidden", 0)}
    options |= {"cross_channel": case.options.get("cross_channel", False)}
    call = {"direction": "forward", "dtype": "float32", **call}
    sizes = {"n": shape[0], "c": shape[1], "s": math.prod(shape[2:])}
    device = emulated.facts(**gpu)
    made: dict[str, Any] = _C.plan(**sizes, layout=memory, variant=case.variant.name, device=device, **call, **options)
    return made["resident"]


def inputs(case: Case, shape: tuple[int, ...], dtype: torch.dtype, memory: str) -> dict[str, Any]:
    x, parameters = case.inputs(shape, dtype)
    layout = LAYOUTS[memory]
    maps = [layout(make_x(shape, dtype, seed=seed)) for seed in (2, 3)]
    return {"x": layout(x), "parameters": parameters, "residual": maps[0], "grad_y": maps[1], **case.options}


# More samples than clusters; planes of one vector and of several, of an odd number of bytes, and rows of one vector.
@pytest.mark.parametrize("shape", [(5, 32, 7, 8), (3, 64, 7, 7), (4, 24, 4), (2, 8, 2, 50), (3, 40, 6, 4, 2)], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_resident_kernels_compute_the_reference(run, case, dtype, memory, shape, check):
    given = inputs(case, shape, dtype, memory)
    check(case.variant, **given, activation="relu")
    check_gradient_rows(case.variant, **given, activation="relu")


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_option(run, case, memory, check):
    given = inputs(case, (3, 32, 4, 6), torch.float32, memory)
    check(case.variant, **given)
    check_gradient_rows(case.variant, **given)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_bits_do_not_depend_on_who_runs_when(run, case, memory, check):
    with emulated.emulated(range(8)):  # compares them itself
        check(case.variant, **inputs(case, (5, 32, 5, 8), torch.bfloat16, memory), activation="relu")


def launches(case: Case, shape: tuple[int, ...], memory: str, dtype: torch.dtype = torch.float32) -> tuple[int, int]:
    """Of a forward and of a backward pass. The two-phase kernel takes two and three, a resident one takes one and two,
    if parameters need not be widened: this is what says that the tests here run the latter."""
    x, parameters = case.inputs(shape, dtype, parameter_dtype=torch.float32)
    x = LAYOUTS[memory](x).requires_grad_()
    with emulated.emulated(schedules=(0,)):
        before = emulated.launches()
        y = case.variant.function(x, *parameters, **case.options)
        forward = emulated.launches() - before
        y.backward(torch.ones_like(x))
        return forward, emulated.launches() - before - forward


@pytest.mark.parametrize("gpu", DEVICES)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_devices_are_what_they_are_called(gpu, memory):
    shape = (5, 32, 7, 8)
    with on(DEVICES[gpu]):
        assert launches(BY_NAME["eca"], shape, memory) == (1, 2)
    for direction in ("forward", "backward"):
        plan = plan_of(DEVICES[gpu], shape, memory, BY_NAME["eca"], direction=direction)
        assert plan["copies"] == ("threads" if gpu == "ampere" else "bulk")
        assert (plan["ranks"] > 1) == (gpu in ("clusters", "large-clusters"))
        assert (plan["clusters"] < shape[0]) == (gpu in ("many-stages", "ampere", "clusters"))
        assert plan["stages"] == 2 or gpu not in ("many-stages", "ampere")


# --- every way through the kernels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A device, a shape and a wish (a rule's ranks, stages and threads) that make the plan what it is to be, for
    every dtype and in both directions."""

    device: Mapping[str, int]
    shape: tuple[int, ...]
    wish: Mapping[str, int]
    plan: Mapping[str, Any]
    memory: str = "contiguous"
    case: Case = BY_NAME["bidirectional"]

    @property
    def rules(self) -> list[dict[str, Any]]:
        what = {"n": 0, "c": self.shape[1], "s": math.prod(self.shape[2:])}
        what["layout"] = {"contiguous": "planes", "channels_last": "rows"}[self.memory]
        return [
            {"ranks": 0, "stages": 0, "threads": 0} | what | self.wish | {"direction": direction, "dtype": dtype}
            for direction in ("forward", "backward")
            for dtype in ("float32", "float16", "bfloat16")
        ]


ONE = {"shared": 48 << 10, "multiprocessors": 1}
SMALL, LARGE = {"shared": 16 << 10, "multiprocessors": 1}, {"shared": 96 << 10, "multiprocessors": 1}
AMPERE, THREE = {"capability": 80}, {"shared": 5 << 10, "multiprocessors": 3}
TIGHT, TIGHT_CLUSTERS = {"shared": 7 << 10, "multiprocessors": 2}, {"shared": 9 << 10, "multiprocessors": 6}
HIDDEN = Case("bidirectional-6", BIDIRECTIONAL, {"hidden": 6})
PLAIN = {"persistent": -1}
GROUPS, LANES, KEPT = {"straddle": True, "lanes": 0}, {"straddle": True}, {"kept_rows": 6}
WAYS = {
    # Planes of 49 elements: 8 groups and more for 32 threads, or fewer, or more than a warp to a plane.
    "groups": Way(LARGE, (3, 64, 7, 7), {"stages": 2, "threads": 32}, GROUPS),
    "groups-threads": Way(LARGE | AMPERE, (3, 64, 7, 7), {"stages": 2, "threads": 32}, GROUPS | {"copies": "threads"}),
    "groups-ranks": Way(ONE, (3, 144, 3, 3), {"ranks": 2, "threads": 32}, GROUPS | {"ranks": 2}),
    "streamed": Way(
        ONE, (3, 64, 7, 7), {"ranks": 1, "stages": 2, "threads": 32}, LANES
    ),  # x read by backward's threads
    "lanes": Way(ONE, (4, 24, 7, 7), {"stages": 2, "threads": 64}, LANES | {"lanes": 4}),
    "lanes-threads": Way(ONE | AMPERE, (4, 24, 7, 7), {"stages": 2, "threads": 64}, LANES | {"copies": "threads"}),
    "lanes-ranks": Way(ONE, (4, 40, 7, 7), {"ranks": 3, "threads": 32}, LANES | {"ranks": 3}),
    "lanes-warps": Way(ONE | {"threads": 256}, (2, 8, 521), {"threads": 256}, LANES | {"lanes": 64}),
    # Slabs of several pieces, of the smallest size and of larger ones.
    "pieces-planes": Way(ONE, (5, 32, 8, 10), {"stages": 2, "threads": 32}, {"stages": 2}),
    "pieces-rows": Way(ONE, (5, 32, 8, 10), {"stages": 2, "threads": 32}, {"stages": 2}, "channels_last"),
    "pieces-large": Way({"shared": 80 << 10, "multiprocessors": 1}, (2, 64, 264), {"ranks": 1}, {}),
    "rows-1": Way(THREE, (5, 9, 4, 6), {"ranks": 3}, {"ranks": 3, "vector": 1}, "channels_last"),
    # As many slabs as there may be, by both kinds of copies.
    "stages": Way(SMALL, (9, 16, 6, 8), {"ranks": 1, "stages": 4}, {"stages": 4, "copies": "bulk"}),
    "stages-ranks": Way(SMALL, (9, 16, 6, 8), {"ranks": 2, "stages": 3}, {"stages": 3, "ranks": 2}, "channels_last"),
    "stages-threads-1": Way(SMALL | AMPERE, (9, 16, 6, 8), {"stages": 1}, {"stages": 1, "copies": "threads"}),
    "stages-threads-3": Way(SMALL | AMPERE, (9, 16, 6, 8), {"stages": 3}, {"stages": 3, "copies": "threads"}),
    "stages-threads-4": Way(SMALL | AMPERE, (9, 16, 6, 8), {"stages": 4}, {"copies": "threads"}, "channels_last"),
    # The gate's largest parameter, or the part of it that belongs to a block's channels.
    "kept": Way(TIGHT, (11, 32, 4, 8), {"ranks": 1, "stages": 1}, KEPT, case=HIDDEN),
    "kept-threads": Way(TIGHT | AMPERE, (11, 32, 4, 8), {"stages": 1}, KEPT | {"copies": "threads"}, case=HIDDEN),
    "kept-ranks": Way(TIGHT_CLUSTERS, (11, 40, 4, 8), {"ranks": 3}, KEPT | {"ranks": 3}, case=HIDDEN),
    "kept-rows": Way(TIGHT_CLUSTERS, (11, 40, 4, 8), {"ranks": 3}, KEPT, "channels_last", HIDDEN),
    # A cluster for each sample, more than run at once.
    "plain": Way(SMALL, (9, 16, 6, 8), PLAIN | {"ranks": 1}, {"persistent": False, "stages": 1, "clusters": 9}),
    "plain-threads": Way(SMALL | AMPERE, (9, 16, 6, 8), PLAIN, {"persistent": False, "clusters": 9}),
    "plain-ranks": Way(TIGHT_CLUSTERS, (11, 40, 4, 8), PLAIN | {"ranks": 3}, {"persistent": False, "clusters": 11}),
    "kept-multi_kernel": Way(
        TIGHT_CLUSTERS, (11, 40, 4, 8), {"ranks": 3}, {"kept_rows": 3}, case=BY_NAME["multi_kernel-cross"]
    ),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    chosen = WAYS[request.param]
    with on(chosen.device, chosen.rules):
        yield chosen


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_is_taken(way, dtype, request):
    name = request.node.callspec.params["way"]
    for direction in ("forward", "backward"):
        call = {"direction": direction, "dtype": str(dtype).removeprefix("torch.")}
        plan = plan_of(way.device, way.shape, way.memory, way.case, **call)
        assert plan["possible"], plan
        assert {key: plan[key] for key in way.plan} == way.plan, plan
        assert way.wish.items() <= {**plan, "persistent": 1 if plan["persistent"] else -1}.items()
        streams = name == "streamed" and direction == "backward" and dtype == torch.float32  # 16 bits have room for x
        assert plan["lanes"] > 0 or "groups" in name or (name == "streamed" and not streams)
        assert plan["parked"] == (plan["straddle"] and direction == "backward" and not streams)
        assert plan["slab_bytes"] > plan["piece_bytes"] or not name.startswith("pieces")
        assert plan["piece_bytes"] > 4096 or name != "pieces-large"
        assert plan["clusters"] * plan["stages"] < way.shape[0] or not name.startswith(("kept", "stages"))
    assert launches(way.case, way.shape, way.memory, dtype) == (1, 2)


@pytest.mark.parametrize("activation", [None, "relu"])  # with it, all that has arrived is visited once before the sums
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_way_computes_the_reference(way, dtype, activation, check):
    given = inputs(way.case, way.shape, dtype, way.memory)
    with emulated.emulated():
        check(way.case.variant, **given, activation=activation)
        check_gradient_rows(way.case.variant, **given, activation=activation)


@pytest.mark.parametrize("name", ["plain", "plain-threads", "plain-ranks", "stages", "kept-ranks"])
def test_grids_have_the_clusters_of_the_plan(name):
    """The kernel is right with any number of clusters: only a count tells whether they are as many as was asked for."""
    way = WAYS[name]
    x, parameters = way.case.inputs(way.shape)
    with on(way.device, way.rules), emulated.emulated(schedules=(0,)), torch.no_grad():
        before = emulated.blocks()
        way.case.variant.function(x, *parameters, **way.case.options)
        plan = plan_of(way.device, way.shape, way.memory, way.case)
        assert emulated.blocks() - before == plan["clusters"] * plan["ranks"]
    assert (plan["clusters"] < way.shape[0]) == plan["persistent"] == (not name.startswith("plain"))


# Rows of single elements, and of 4 of 2 bytes; where blocks share a sample, the last has fewer channels.
@pytest.mark.parametrize("shape", [(5, 9, 4, 6), (3, 12, 4, 6)], ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_channels_need_not_fill_a_vector(case, dtype, ranks, memory, shape, check):
    way = Way(THREE | {"multiprocessors": ranks}, shape, {"ranks": ranks}, {}, memory, case)
    given = inputs(case, shape, dtype, memory)
    with on(way.device, way.rules), emulated.emulated():
        for direction in ("forward", "backward"):
            call = {"direction": direction, "dtype": str(dtype).removeprefix("torch.")}
            plan = plan_of(way.device, shape, memory, case, **call)
            assert plan["possible"] and plan["ranks"] == ranks
            assert memory == "contiguous" or plan["vector"] == (1 if shape[1] % 2 else 4)
        check(case.variant, **given, activation="relu")
        check_gradient_rows(case.variant, **given, activation="relu")


# --- under the sanitizers ---------------------------------------------------------------------------------------------


@pytest.mark.sanitized
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gpu", ["many-stages", "clusters"])
@pytest.mark.parametrize("case", [*DEFAULTS, CASES[6]], ids=str)
def test_resident_kernels_are_clean(case, gpu, memory, check):
    with on(DEVICES[gpu]), emulated.emulated():
        check(case.variant, **inputs(case, (9, 32, 8, 8), torch.float32, memory), activation="relu")


@pytest.mark.sanitized
@pytest.mark.parametrize(
    "name, activation",
    [
        (name, "relu")
        for name in ("groups", "lanes-ranks", "pieces-planes", "stages-threads-3", "kept-ranks", "plain-ranks")
    ]
    + [("groups", None)],  # nobody waits for the parked map before the sums do
)
def test_ways_are_clean(name, activation, check):
    way = WAYS[name]
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **inputs(way.case, way.shape, torch.float32, way.memory), activation=activation)


@pytest.mark.sanitized
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["groups", "lanes-ranks", "pieces-rows", "rows-1", "kept-rows"])
def test_ways_of_16_bits_are_clean(name, dtype, check):
    """They are kernels of their own."""
    way = WAYS[name]
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **inputs(way.case, way.shape, dtype, way.memory), activation="relu")
