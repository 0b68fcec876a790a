# SPDX-License-Identifier: MIT
"""The one-pass kernels on the emulated device: every sample in the shared memory of one block, or of the blocks of a
cluster, for every gate, dtype and layout; every way through the kernels; bytes moved, exchanges and barriers."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import emulated
import pytest
import torch
from cases import CASES, DEFAULTS, Case
from gradients import check_gradient_rows
from layouts import LAYOUTS
from test_emulated_kernels import far_apart

from eca_cuda._ext import _C
from eca_cuda.testing import BIDIRECTIONAL, MULTI_KERNEL, make_x

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")

BY_NAME = {str(case): case for case in CASES}
ECA_CASE = BY_NAME["eca"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DIRECTIONS = ("forward", "backward")

# Shared memory per block determines how many blocks a sample needs.
CLUSTERS = {"shared": 7 << 10, "multiprocessors": 6}
DEVICES: dict[str, dict[str, int]] = {
    "one-block": {"shared": 64 << 10, "multiprocessors": 1},
    "ampere": {"shared": 64 << 10, "multiprocessors": 1, "capability": 86},
    "clusters": CLUSTERS,
    "large-clusters": {"shared": 6 << 10, "multiprocessors": 32},
}


@contextmanager
def on(gpu: Mapping[str, int], rules: list[dict[str, Any]] | None = None) -> Iterator[None]:
    """Sets the emulated device, and the rules that plans follow."""
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
    """The plan of a call."""
    k = 7 if case.variant is MULTI_KERNEL else case.inputs(shape)[1][0].shape[-1]
    options = {"kernel_size": k, "hidden": case.shape_options.get("hidden", 0)}
    options |= {"cross_channel": case.options.get("cross_channel", False)}
    call = {"direction": "forward", "dtype": "float32", **call}
    sizes = {"n": shape[0], "c": shape[1], "s": math.prod(shape[2:])}
    device = emulated.facts(**gpu)
    made: dict[str, Any] = _C.plan(**sizes, layout=memory, variant=case.variant.name, device=device, **call, **options)
    return made


def inputs(case: Case, shape: tuple[int, ...], dtype: torch.dtype, memory: str) -> dict[str, Any]:
    x, parameters = case.inputs(shape, dtype)
    layout = LAYOUTS[memory]
    maps = [layout(make_x(shape, dtype, seed=seed)) for seed in (2, 3)]
    return {"x": layout(x), "parameters": parameters, "residual": maps[0], "grad_y": maps[1], **case.options}


# Planes of one vector and of several, of an odd number of bytes, smaller than a vector; rows of one vector.
SHAPES = [(5, 32, 7, 8), (3, 64, 7, 7), (4, 24, 4), (2, 8, 2, 50), (3, 40, 6, 4, 2), (2, 64, 1, 3), (9, 16, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_one_pass_computes_the_reference(run, case, dtype, memory, shape, check):
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
    with emulated.emulated(range(8)):  # compares the schedules itself
        check(case.variant, **inputs(case, (5, 32, 5, 8), torch.bfloat16, memory), activation="relu")


def counted(case: Case, given: dict[str, Any], activation: str | None) -> tuple[dict[str, int], dict[str, int]]:
    """The counts of a forward and of a backward pass."""
    options = {key: value for key, value in given.items() if key not in ("x", "parameters", "grad_y")}
    with emulated.emulated(schedules=(0,)):
        before = emulated.count()
        x = given["x"].requires_grad_()
        y = case.variant.function(x, *given["parameters"], activation=activation, **options)
        between = emulated.count()
        y.backward(given["grad_y"])
        after = emulated.count()
    steps = [{key: b[key] - a[key] for key in a} for a, b in ((before, between), (between, after))]
    return steps[0], steps[1]


def runs(case: Case, shape: tuple[int, ...], memory: str, dtype: torch.dtype) -> list[dict[str, int]]:
    """The counts of a forward and of a backward pass with residual and ReLU."""
    return list(counted(case, inputs(case, shape, dtype, memory), "relu"))


@pytest.mark.parametrize("gpu", DEVICES)
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_devices_are_what_they_are_called(gpu, memory):
    shape = (5, 32, 7, 8)
    for direction in DIRECTIONS:
        plan = plan_of(DEVICES[gpu], shape, memory, ECA_CASE, direction=direction, relu=True, residual=True)
        assert plan["path"] == "one_pass" and (plan["blocks_per_sample"] > 1) == ("clusters" in gpu)
        assert plan["bulk"] == (gpu != "ampere" and memory == "contiguous")
        if direction == "forward":
            with on(DEVICES[gpu]):
                blocks = runs(ECA_CASE, shape, memory, torch.float32)[0]["blocks"]
            assert blocks == shape[0] * plan["blocks_per_sample"]


# --- every way through the kernels ------------------------------------------------------------------------------------


LAST = "channels_last"
ONE = {"shared": 48 << 10, "multiprocessors": 16}  # room for a cluster
WIDE = ONE | {"threads": 256}
TIGHT = {"shared": 9 << 10, "multiprocessors": 16}  # room for one slab of a block only


@dataclass(frozen=True)
class Way:
    """A shape, a wish (a rule's blocks, parts and threads) and a device that give ``plan``, for every dtype and in both
    directions."""

    shape: tuple[int, ...]
    wish: Mapping[str, int]
    plan: Mapping[str, Any] = field(default_factory=dict)
    memory: str = "contiguous"
    case: Case = BY_NAME["bidirectional"]
    device: Mapping[str, int] = field(default_factory=lambda: ONE)
    dtypes: tuple[torch.dtype, ...] = DTYPES

    @property
    def rules(self) -> list[dict[str, Any]]:
        what = {"n": 0, "c": self.shape[1], "s": math.prod(self.shape[2:])}
        what["layout"] = {"contiguous": "planes", "channels_last": "rows"}[self.memory]
        wish = {"blocks": 0, "parts": 0, "threads": 0} | self.wish
        return [what | wish | {"direction": d, "dtype": str(t)[6:]} for d in DIRECTIONS for t in DTYPES]


HIDDEN = {n: Case(f"bidirectional-{n}", BIDIRECTIONAL, {"hidden": n}) for n in (16, 17)}
CIRCULAR, CROSS = BY_NAME["bidirectional-circular-hard"], BY_NAME["multi_kernel-cross-circular-hard"]
FLOAT, STREAMED = (torch.float32,), {"keeps_x": False, "keeps_extra": False}
WAYS = {
    # Halos: blocks of one channel, of two, and a last one with fewer than the others but as many as a window reaches.
    "one-channel": Way((2, 4, 4, 8), {"blocks": 4}, {"channels": 1}),
    "two-channels": Way((2, 6, 4, 8), {"blocks": 3}, {"channels": 2}),
    "last-of-one": Way((2, 7, 4, 8), {"blocks": 4}, {"channels": 2}),
    "last-is-halo": Way((2, 14, 4, 8), {"blocks": 3}, {"channels": 5}, case=BY_NAME["eca-k9"]),
    "circular": Way((2, 7, 4, 8), {"blocks": 4}, {"channels": 2}, case=CIRCULAR),
    "circular-two": Way((2, 8, 4, 8), {"blocks": 2}, {"channels": 4}, case=BY_NAME["eca-circular-hard"]),
    "cross": Way((2, 18, 4, 8), {"blocks": 3}, {"channels": 6}, case=CROSS),
    "no-neighbours": Way((2, 8, 4, 8), {"blocks": 4}, {"channels": 2}, case=BY_NAME["eca-k1"]),
    # Sums over all channels: pushed to all blocks, or first added up by owners; the last blocks own none.
    "few-sums": Way((2, 24, 4, 8), {"blocks": 12}, {"channels": 2}, case=HIDDEN[16]),
    "many-sums": Way((2, 24, 4, 8), {"blocks": 12}, {"channels": 2}, case=HIDDEN[17]),
    "many-sums-rows": Way((2, 48, 4, 8), {"blocks": 6, "parts": 2}, {"position_parts": 2}, LAST, HIDDEN[17]),
    # Planes that vectors straddle, one per thread, per few threads, per more than a warp; and aligned planes.
    "lane": Way((3, 64, 7, 7), {"blocks": 1, "threads": 32}, {"straddle": True, "lanes": 1}),
    "lanes": Way((4, 24, 7, 7), {"threads": 64}, {"straddle": True, "lanes": 4}),
    "lanes-blocks": Way((4, 40, 7, 7), {"blocks": 3, "threads": 32}, {"straddle": True}),
    "warps": Way((2, 8, 521), {"blocks": 1, "threads": 256}, {"straddle": True, "lanes": 64}, device=WIDE),
    "warps-aligned": Way((2, 2, 512), {"blocks": 1, "threads": 256}, {"straddle": False}, device=WIDE),
    # Rows: strips, the last one with fewer channels; parts of the positions, the last one with fewer.
    "strips": Way((2, 48, 5, 5), {"blocks": 3, "parts": 1}, {"channels": 16}, LAST),
    "narrow-last": Way((2, 40, 5, 5), {"blocks": 3, "parts": 1}, {"channels": 16}, LAST),
    "odd-last": Way((2, 56, 5, 5), {"blocks": 2, "parts": 1}, {"position_parts": 1}, LAST),
    "all-columns": Way((2, 40, 5, 5), {"blocks": 2, "parts": 2}, {"channels": 40}, LAST),
    "parts": Way((2, 32, 5, 5), {"blocks": 8, "parts": 4}, {"channels": 16, "positions": 7}, LAST),
    "parts-circular": Way((2, 32, 5, 5), {"blocks": 8, "parts": 4}, {"channels": 16}, LAST, CIRCULAR),
    "parts-alone": Way((2, 32, 5, 5), {"blocks": 4, "parts": 4}, {"channels": 32}, LAST, CROSS),
    # Maps for which there is no room; copies by threads instead of bulk copies.
    "streamed": Way((2, 16, 15, 16), {"blocks": 2}, STREAMED, device=TIGHT, dtypes=FLOAT),
    "streamed-odd": Way((2, 16, 15, 15), {"blocks": 2}, STREAMED, device=TIGHT, dtypes=FLOAT),
    "streamed-half": Way((2, 32, 15, 15), {"blocks": 2}, STREAMED, device=TIGHT, dtypes=DTYPES[1:]),
    "streamed-rows": Way((2, 80, 5, 7), {"blocks": 2, "parts": 1}, STREAMED, LAST, device=TIGHT, dtypes=FLOAT),
    "threads": Way(
        (2, 24, 7, 7), {"blocks": 1}, {"bulk": False}, device=ONE | {"capability": 80, "multiprocessors": 1}
    ),
    "threads-streamed": Way(
        (2, 8, 15, 15), {}, STREAMED, device=TIGHT | {"capability": 80, "multiprocessors": 1}, dtypes=FLOAT
    ),
}
CHOSEN = [(name, dtype) for name, way in WAYS.items() for dtype in way.dtypes]


@pytest.mark.parametrize(("name", "dtype"), CHOSEN, ids=str)
def test_every_way_is_taken(name, dtype):
    way = WAYS[name]
    with on(way.device, way.rules):
        done = runs(way.case, way.shape, way.memory, dtype)
        assert [step["launches"] for step in done] == [1, 2]
        for direction, step in zip(DIRECTIONS, done, strict=True):
            call = {"direction": direction, "dtype": str(dtype)[6:], "relu": True, "residual": True}
            plan = plan_of(way.device, way.shape, way.memory, way.case, **call)
            assert plan["path"] == "one_pass", plan
            # The second launch of backward adds blocks. Without room for the cluster there would be another plan.
            blocks = way.shape[0] * plan["blocks_per_sample"]
            assert step["blocks"] == blocks if direction == "forward" else step["blocks"] > blocks
            assert step["pushed"] > 0 or plan["blocks_per_sample"] == 1 or way.case is BY_NAME["eca-k1"]
            assert {key: plan[key] for key in way.plan} == way.plan, plan
            got = {"blocks": plan["blocks_per_sample"], "parts": plan["position_parts"], "threads": plan["threads"]}
            assert way.wish.items() <= got.items(), plan
            assert plan["lanes"] > 32 or not name.startswith("warps")
            if name == "odd-last" and dtype != torch.float32:  # strips of 4 columns and of 3
                assert plan["channels"] == 32


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("name", "dtype"), CHOSEN, ids=str)
def test_every_way_computes_the_reference(name, dtype, activation, check):
    way = WAYS[name]
    given = inputs(way.case, way.shape, dtype, way.memory)
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **given, activation=activation)
        check_gradient_rows(way.case.variant, **given, activation=activation)
        if activation is None:
            check(way.case.variant, **{**given, "residual": None})


def test_samples_more_than_31_bits_apart(check):
    shape = (3, 4, 8)
    x, parameters = ECA_CASE.inputs(shape, torch.float16)
    far, grad_y = (far_apart(t, 0, 2**30 + 8) for t in (x, make_x(shape, x.dtype, seed=3)))
    with emulated.emulated(schedules=(0,)):
        before = emulated.count()
        check(ECA_CASE.variant, far, parameters, grad_y=grad_y)
        assert emulated.count()["loaded"] > before["loaded"]  # by one pass


# --- bytes moved, exchanges and barriers -----------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_map_is_read_once(dtype, memory, relu):
    """Forward reads x and a residual, backward grad_y, x and, with a ReLU, the signs: each byte by one copy or load."""
    shape, gpu = (3, 64, 7, 8), {"shared": 64 << 10, "multiprocessors": 8}  # some blocks for each sample
    given = inputs(ECA_CASE, shape, dtype, memory)
    given["residual"] = given["residual"] if relu else None
    with on(gpu):
        forward, backward = counted(ECA_CASE, given, "relu" if relu else None)
    size = given["x"].numel() * given["x"].element_size()
    signs = size // 16 if relu else 0
    assert (forward["loaded"], backward["loaded"]) == ((2 if relu else 1) * size, 2 * size + signs)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
def test_a_streamed_map_is_read_once_too(memory):
    name = {"contiguous": "streamed", "channels_last": "streamed-rows"}[memory]
    way = WAYS[name]
    given = inputs(ECA_CASE, way.shape, torch.float32, memory) | {"residual": None}
    with on(way.device, way.rules):
        _, backward = counted(ECA_CASE, given, None)
    assert backward["loaded"] == 2 * given["x"].numel() * 4


@pytest.mark.parametrize(("k", "circular"), [(1, False), (3, False), (9, False), (5, True)])
def test_blocks_tell_each_other_halos_and_nothing_else(k, circular):
    """Forward pushes the means that a neighbour's window reaches, backward dL/dz: half a window from each side."""
    blocks, options = 4, {"padding_mode": "circular"} if circular else {}
    way = Way((3, 32, 8, 8), {"blocks": blocks}, case=Case("eca", ECA_CASE.variant, {"k": k}, options))
    given = inputs(way.case, way.shape, torch.float32, way.memory) | {"residual": None}
    with on(way.device, way.rules):
        forward, backward = counted(way.case, given, None)
        assert forward["blocks"] == way.shape[0] * blocks
    borders = blocks if circular else blocks - 1
    assert forward["pushed"] == backward["pushed"] == way.shape[0] * borders * 2 * (k // 2)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gpu", DEVICES)
def test_barriers_are_few(gpu, memory):
    """Barriers of a plain ECA block: forward up to its last store, backward up to its record."""
    shape = (3, 32, 8, 8)
    given = inputs(ECA_CASE, shape, torch.float32, memory) | {"residual": None}
    with on(DEVICES[gpu]):
        forward, backward = counted(ECA_CASE, given, None)
        parts = plan_of(DEVICES[gpu], shape, memory, ECA_CASE)["position_parts"] > 1
    # The second launch has a block for each number and parameter, with two barriers for each number.
    numbers = given["parameters"][0].numel()
    second_blocks = numbers * 6
    one_pass_blocks = backward["blocks"] - second_blocks
    assert forward["barriers"] <= (7 if parts else 5) * forward["blocks"]
    assert backward["barriers"] - 2 * numbers <= (8 if parts else 6) * one_pass_blocks


# --- under the sanitizers ---------------------------------------------------------------------------------------------


@pytest.mark.sanitized
@pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
@pytest.mark.parametrize("gpu", ["one-block", "clusters"])
@pytest.mark.parametrize("case", [*DEFAULTS, BY_NAME["multi_kernel-cross"]], ids=str)
def test_one_pass_is_clean(case, gpu, memory, check):
    with on(DEVICES[gpu]), emulated.emulated():
        check(case.variant, **inputs(case, (3, 32, 8, 8), torch.float32, memory), activation="relu")


CLEAN = [name for name in WAYS if name not in ("warps", "warps-aligned")]  # more threads than ThreadSanitizer can take


@pytest.mark.sanitized
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", CLEAN)
def test_ways_are_clean(name, activation, check):
    way = WAYS[name]
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **inputs(way.case, way.shape, way.dtypes[0], way.memory), activation=activation)


@pytest.mark.sanitized
@pytest.mark.parametrize(("c", "case"), [(13, "eca-k9"), (7, "eca-circular-hard")])
def test_a_cut_that_windows_overreach_is_not_taken(c, case, check):
    """Of 3 blocks, the last would have 3 or 1 channels, where its neighbour's window reaches 4 or 2."""
    way = Way((2, c, 4, 8), {"blocks": 3}, case=BY_NAME[case])
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **inputs(way.case, way.shape, torch.float32, way.memory))


@pytest.mark.sanitized
@pytest.mark.parametrize("name", ["lanes-blocks", "odd-last", "parts", "threads"])
def test_ways_of_16_bits_are_clean(name, check):
    """16-bit dtypes have kernels of their own."""
    way = WAYS[name]
    with on(way.device, way.rules), emulated.emulated():
        check(way.case.variant, **inputs(way.case, way.shape, torch.float16, way.memory), activation="relu")
