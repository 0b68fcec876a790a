# SPDX-License-Identifier: MIT
"""The launch plan of the resident kernels (csrc/plan/resident.cpp): within all limits, work for all blocks, copies of
whole 16 bytes, and resident wherever the goals need it; and the rules that stand above it (csrc/plan/tuning.cpp)."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from eca_cuda._ext import _C

DEVICES = {device["name"]: device for device in _C.devices()}
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
STRANGE = [
    DEVICES["h100"] | {"name": "one", "multiprocessors": 1},
    DEVICES["h100"] | {"name": "seven", "multiprocessors": 7},
    DEVICES["h100"] | {"name": "small", "shared_opt_in": 16 << 10, "max_threads": 64},
]

# Channels and positions of ResNet-50's and MobileNetV2's layers.
RESNET = [(256, 56), (512, 28), (1024, 14), (2048, 7)]
MOBILENET = [(32, 112), (96, 56), (144, 56), (144, 28), (192, 28), (192, 14), (384, 14), (576, 14), (576, 7), (960, 7)]


def test_random_problems_stay_within_all_limits() -> None:
    random.seed(0)
    possible, met, kept_by = 0, set(), set()
    for _ in range(4000):
        n, c, s = (
            random.choice([1, 2, 7, 32, 300]),
            random.randint(1, 2200),
            random.choice([1, 4, 36, 49, 196, 784, 3136]),
        )
        c = random.choice([c, (c + 7) // 8 * 8])
        dtype, layout = random.choice([*ITEM]), random.choice(["contiguous", "channels_last"])
        direction = random.choice(["forward", "backward"])
        variant = random.choice(["eca", "multi_kernel_eca", "bidirectional_eca"])
        device = random.choice([*DEVICES.values(), *STRANGE])
        options = {
            "relu": random.random() < 0.5,
            "residual": random.random() < 0.5,
            "hidden": c // 16,
            "kernel_size": 5,
        }
        made = _C.plan(n, c, s, dtype, layout, variant, direction, device, **options)
        plan, rows = made["resident"], made["layout"] == "rows"
        if not plan["possible"]:
            assert plan["reason"]
            continue
        possible += 1
        runs, length = (s, c) if rows else (c, s)
        assert plan["ranks"] in (1, 2, 3, 4, 6, 8, 12, 16) and plan["clusters"] >= 1 and plan["clusters"] <= n
        if device["capability"] >= 90:
            assert plan["copies"] == "bulk"
        else:
            assert device["capability"] >= 80 and 2 * n >= device["multiprocessors"]
            assert (plan["copies"], plan["ranks"]) == ("threads", 1)
        assert runs <= plan["runs"] * plan["ranks"]
        assert rows or plan["runs"] * (plan["ranks"] - 1) < runs  # planes for every block
        bulk = [min(max(runs - plan["runs"] * rank, 0), plan["runs"]) for rank in range(plan["ranks"])]
        assert all(part * length * ITEM[dtype] % 16 == 0 for part in bulk)
        assert plan["slab_bytes"] >= min(plan["runs"], runs) * length * ITEM[dtype]
        assert plan["shared_bytes"] <= device["shared_opt_in"]
        assert plan["threads"] <= min(512, device["max_threads"]) and plan["threads"] % 32 == 0
        resident = device["shared_per_multiprocessor"] // (plan["shared_bytes"] + 1024) * device["multiprocessors"]
        assert plan["clusters"] * plan["ranks"] <= resident
        kept = 4 * plan["kept_rows"] * plan["channels"]
        exchanged = 4 * plan["exchange_numbers"] * (1 if plan["ranks"] == 1 else 2)
        assert plan["shared_bytes"] >= plan["stages"] * plan["slab_bytes"] + exchanged + kept
        rows_of = {"eca": 0, "multi_kernel_eca": 3, "bidirectional_eca": c // 16}
        assert plan["kept_rows"] in (0, rows_of[variant])
        piece = plan["piece_bytes"]
        assert piece >= 4096 and piece & (piece - 1) == 0 and plan["slab_bytes"] <= 8 * piece
        assert piece == 4096 or plan["slab_bytes"] > 4 * piece  # no larger than need be
        assert plan["straddle"] == (not rows and s * ITEM[dtype] % 16 != 0)
        if not rows:
            group = plan["group"]
            assert group * s * ITEM[dtype] % 16 == 0 and plan["runs"] % group == 0
            assert group == 1 or group // 2 * s * ITEM[dtype] % 16 != 0  # no larger than need be
            assert plan["lanes"] > 0 or plan["straddle"]
            met.add((plan["copies"], plan["straddle"], plan["lanes"] == 0))
        kept_by.add((plan["copies"], variant, plan["kept_rows"] > 0))
    assert possible > 1000
    ways = [(False, False), (True, False), (True, True)]  # straddling planes, in groups
    assert met == {(copies, *way) for copies in ("bulk", "threads") for way in ways}
    may_keep = {(v, keep) for v in ("multi_kernel_eca", "bidirectional_eca") for keep in (False, True)}
    assert kept_by == {(copies, *k) for copies in ("bulk", "threads") for k in {("eca", False)} | may_keep}


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_every_layer_of_the_goals_is_resident(name: str) -> None:
    variants = ("eca", "multi_kernel_eca", "bidirectional_eca")
    for (c, side), dtype, layout, direction, n, variant in itertools.product(
        RESNET + MOBILENET, ITEM, ("contiguous", "channels_last"), ("forward", "backward"), (1, 32, 256), variants
    ):
        options = {"kernel_size": 7 if variant == "multi_kernel_eca" else 5, "hidden": c // 16}
        plan = _C.plan(n, c, side * side, dtype, layout, variant, direction, name, **options)["resident"]
        assert plan["possible"], (c, side, dtype, layout, direction, variant, plan)


def test_clusters_do_not_cross_the_borders_of_gpcs() -> None:
    """An H100's 132 multiprocessors hold 7 clusters of 16 blocks that fill one each, not 8."""
    made = plan(256, 256, 3136)
    assert (made["ranks"], made["stages"], made["clusters"]) == (16, 2, 7)
    anywhere = {key: value for key, value in DEVICES["h100"].items() if key != "clusters"}
    assert plan(256, 256, 3136, anywhere)["clusters"] == 8
    with pytest.raises(ValueError, match="clusters: expected two lists of 17 numbers"):
        plan(1, 64, 49, DEVICES["h100"] | {"clusters": [1, 2]})


def test_columns_of_a_large_parameter_are_shared_out_even_to_blocks_without_rows() -> None:
    """Otherwise 49 rows could not be cut for 12 or 16 blocks, and 1 MB would be read for every sample."""
    made = _C.plan(256, 2048, 49, "float16", "channels_last", "bidirectional_eca", "forward", "h100", hidden=128)
    assert made["resident"]["kept_rows"] == 128
    assert made["resident"]["runs"] * (made["resident"]["ranks"] - 1) >= 49


def plan(n: int, c: int, s: int, device: Any = "h100", direction: str = "forward", **options: Any) -> dict[str, Any]:
    """Of float16 planes."""
    variant = "bidirectional_eca" if "hidden" in options else "eca"
    made: dict[str, Any] = _C.plan(n, c, s, "float16", "contiguous", variant, direction, device, **options)["resident"]
    return made


@pytest.mark.parametrize("dtype", ITEM)
def test_what_can_not_be_resident_says_why(dtype: str) -> None:
    def reason(*args: object, **kwargs: object) -> str:
        return str(_C.plan(*args, "eca", "forward", **kwargs)["resident"]["reason"])

    assert "compute capability 8.0" in reason(8, 64, 49, dtype, "contiguous", device="t4")
    assert "too few samples to keep the multiprocessors busy" in reason(8, 64, 49, dtype, "contiguous", device="a100")
    assert "shared memory of one block" in reason(256, 256, 3136, dtype, "contiguous", device="a100")
    assert "16-byte boundaries" in reason(8, 3, 49, dtype, "contiguous", device="h100")
    assert "planes are smaller than a vector" in reason(8, 64, 3, dtype, "contiguous", device="h100")
    assert "shared memory of 16 blocks" in reason(8, 2048, 3136, dtype, "contiguous", device="h100")
    assert "the numbers of its channels" in reason(8, 1 << 15, 4, dtype, "channels_last", device="h100")
    assert "nothing to keep" in reason(0, 64, 49, dtype, "contiguous", device="h100")
    assert "float64" in reason(8, 64, 49, "float64", "contiguous", device="h100")


@pytest.mark.parametrize("name", [name for name, device in DEVICES.items() if 80 <= device["capability"] < 90])
def test_without_clusters_a_sample_has_one_block(name: str) -> None:
    enough = (DEVICES[name]["multiprocessors"] + 1) // 2  # samples, for half of the multiprocessors
    made = plan(enough, 512, 49, name)
    assert (made["possible"], made["copies"], made["ranks"]) == (True, "threads", 1)
    assert "too few samples" in plan(enough - 1, 512, 49, name)["reason"]
    room = DEVICES[name]["shared_opt_in"]
    channels = room // (2 * 49) // 8 * 8  # what fits without the rest of what the kernel needs
    assert "the numbers of its channels" in plan(enough, channels, 49, name)["reason"]
    assert "shared memory of one block" in plan(enough, 2 * channels, 49, name)["reason"]
    assert plan(enough, channels * 3 // 4 // 8 * 8, 49, name)["possible"]


def test_planes_that_vectors_straddle_are_added_up_in_groups_or_by_lanes() -> None:
    # 98 bytes a plane: 8 planes are 49 vectors, and 1024 planes are 128 groups: enough for a block of 512 threads.
    made = plan(256, 1024, 49)
    assert (made["vector"], made["straddle"], made["group"], made["lanes"]) == (8, True, 8, 0)
    assert plan(256, 960, 49)["lanes"] == 0
    # 504 planes are 63 groups: too few.
    made = plan(256, 504, 49)
    assert (made["threads"], made["straddle"], made["group"]) == (512, True, 8) and made["lanes"] > 0, made
    # 392 bytes: 2 planes are 49 vectors. 1058 bytes (23 x 23): 8 planes are 529, too many for one thread, though 32
    # threads would have 8 groups.
    assert plan(256, 512, 196)["group"] == 2
    _C.set_tuning([RULE | {"n": 0, "c": 64, "s": s, "threads": 32} for s in (49, 23 * 23)])
    assert plan(256, 64, 49)["lanes"] == 0
    made = plan(256, 64, 23 * 23)
    assert (made["threads"], made["runs"], made["group"]) == (32, 64, 8) and made["lanes"] > 0
    # 128 bytes: whole vectors, a plane for itself.
    made = plan(256, 512, 64)
    assert (made["straddle"], made["group"]) == (False, 1) and made["lanes"] > 0


def test_slabs_arrive_in_up_to_eight_pieces() -> None:
    for kilobytes, piece in {8: 4, 32: 4, 33: 8, 64: 8, 65: 16, 128: 16, 129: 32}.items():
        c = 8 * kilobytes  # of planes of 128 bytes
        _C.set_tuning([RULE | {"n": 0, "c": c, "s": 64, "ranks": 1, "stages": 1}])
        made = plan(256, c, 64)
        assert (made["slab_bytes"], made["piece_bytes"]) == (kilobytes << 10, piece << 10)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("c", [960, 2048])
def test_the_largest_parameter_is_kept_where_every_sample_would_read_it_again(c: int, direction: str) -> None:
    hidden = c // 16
    made = plan(256, c, 49, "h100", direction, hidden=hidden)
    assert made["kept_rows"] == hidden and f"{hidden} rows of a parameter kept" in made["text"]
    assert plan(1, c, 49, "h100", "forward", hidden=hidden)["kept_rows"] == 0  # read once, then
    assert plan(256, c, 49, "h100", direction)["kept_rows"] == 0  # plain ECA has none


def test_small_slabs_leave_room_for_many_samples() -> None:
    small = plan(8192, 16, 49)  # 1.5 KB
    assert (small["threads"], small["clusters"]) == (32, 32 * DEVICES["h100"]["multiprocessors"])
    assert [plan(8192, c, 64)["threads"] for c in (16, 64, 256)] == [32, 128, 256]  # 2, 8 and 32 KB


# --- rules that stand above the plan ---------------------------------------------------------------------------------

RULE = {"direction": "forward", "dtype": "float16", "layout": "planes", "n": 32, "c": 512, "s": 784}
RULE |= {"ranks": 0, "stages": 0, "threads": 0}
FREE = plan(32, 512, 784)


@pytest.fixture(autouse=True)
def no_rules() -> Iterator[None]:
    _C.set_tuning([])
    yield
    _C.set_tuning([])


@pytest.mark.parametrize(("key", "value"), [("ranks", 12), ("stages", 1), ("stages", 3), ("threads", 64)])
def test_a_rule_is_followed(key: str, value: int) -> None:
    assert FREE[key] != value or key == "stages"
    _C.set_tuning([RULE | {"ranks": 12, key: value}])
    made = plan(32, 512, 784)
    assert made["possible"] and (made[key], made["ranks"]) == (value, 12)
    _C.set_tuning([])
    assert plan(32, 512, 784) == FREE


def test_a_rule_is_for_exactly_its_calls() -> None:
    call = {"direction": "forward", "dtype": "float16", "layout": "contiguous", "n": 32, "c": 512, "s": 784}
    call |= {"variant": "eca", "device": "h100"}
    others = {"direction": "backward", "dtype": "bfloat16", "layout": "channels_last", "n": 31, "c": 504, "s": 783}
    free = {name: _C.plan(**call | {name: other}) for name, other in others.items()}
    _C.set_tuning([RULE | {"ranks": 16, "stages": 1, "threads": 64}])
    assert _C.plan(**call)["resident"]["threads"] == 64
    for name, other in others.items():
        assert _C.plan(**call | {name: other}) == free[name], name


def test_a_rule_may_be_for_one_variant() -> None:
    call = {"direction": "forward", "dtype": "float16", "layout": "contiguous", "n": 32, "c": 512, "s": 784}
    variants = ("eca", "multi_kernel_eca", "bidirectional_eca")

    def ranks() -> list[int]:
        return [_C.plan(**call, variant=name, device="h100", hidden=32)["resident"]["ranks"] for name in variants]

    free = ranks()
    assert 16 not in free
    _C.set_tuning([RULE | {"ranks": 16, "variant": "bidirectional_eca"}])
    assert ranks() == [*free[:2], 16]
    _C.set_tuning([RULE | {"ranks": 16}])
    assert ranks() == [16, 16, 16]


def test_n_0_is_any_and_the_first_rule_counts() -> None:
    _C.set_tuning([RULE | {"n": 32, "ranks": 12}, RULE | {"n": 0, "ranks": 6}, RULE | {"n": 64, "ranks": 8}])
    assert [plan(n, 512, 784)["ranks"] for n in (32, 33, 64)] == [12, 6, 6]


def test_a_rule_decides_between_persistent_clusters_and_one_for_each_sample() -> None:
    _C.set_tuning([RULE | {"ranks": 8}])
    taking_turns = plan(32, 512, 784)
    assert taking_turns["persistent"] and taking_turns["clusters"] < 32
    _C.set_tuning([RULE | {"ranks": 8, "persistent": -1}])
    made = plan(32, 512, 784)
    assert (made["persistent"], made["clusters"], made["stages"], made["ranks"]) == (False, 32, 1, 8)
    _C.set_tuning([RULE | {"ranks": 8, "stages": taking_turns["stages"], "persistent": 1}])
    assert plan(32, 512, 784) == taking_turns


def test_a_rule_decides_for_the_two_phase_kernel() -> None:
    _C.set_tuning([RULE | {"ranks": -1}])
    assert plan(32, 512, 784) == {"possible": False, "reason": "the tuning table asks for the two-phase kernel"}


# 784 KB in one block; a cluster of 5; more slabs than there are barriers; slabs for samples that don't come.
@pytest.mark.parametrize(
    "wish",
    [{"ranks": 1}, {"ranks": 5}, {"ranks": 12, "stages": 5}, {"ranks": 12, "stages": 2, "persistent": -1}],
    ids=str,
)
def test_a_rule_that_does_not_fit_is_nobodys(wish: dict[str, int]) -> None:
    _C.set_tuning([RULE | wish])
    assert plan(32, 512, 784) == FREE


def test_a_grid_has_no_more_blocks_than_the_driver_takes() -> None:
    n = (1 << 31) // 16
    _C.set_tuning([RULE | {"n": 0, "c": 8, "s": 64, "persistent": -1}])
    assert not plan(n, 8, 64)["persistent"]
    assert plan(1 << 31, 8, 64)["persistent"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({key: value for key, value in RULE.items() if key != "stages"}, "a dict with 'stages', got one without"),
        (RULE | {"direction": "up"}, "direction: expected one of forward, backward, got 'up'"),
        (RULE | {"variant": "se"}, "variant: expected one of eca, multi_kernel_eca, bidirectional_eca, got 'se'"),
        (RULE | {"dtype": 16}, "dtype: expected a name, got 16"),
        (RULE | {"layout": "contiguous"}, "layout: expected one of planes, rows, got 'contiguous'"),
        (RULE | {"threads": 48}, "expected threads: 0 or a power of two from 32 to 512, got 48"),
        (RULE | {"threads": 1024}, "expected threads: 0 or a power of two from 32 to 512, got 1024"),
        (RULE | {"ranks": -2}, "expected ranks >= -1, got -2"),
        (RULE | {"persistent": 2}, "persistent: expected -1 to 1, got 2"),
        (RULE | {"c": 0}, "expected c >= 1, got 0"),
        (RULE | {"n": "many"}, "expected n >= 0, got 'many'"),
        (7, "expected dicts, got 7"),
    ],
    ids=str,
)
def test_a_bad_rule_is_refused_and_changes_nothing(rule: Any, message: str) -> None:
    _C.set_tuning([RULE | {"ranks": 12}])
    with pytest.raises(ValueError, match=r"^rules") as refused:
        _C.set_tuning([RULE | {"ranks": 6}, rule])
    assert message in str(refused.value)
    assert plan(32, 512, 784)["ranks"] == 12
