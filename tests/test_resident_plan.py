# SPDX-License-Identifier: MIT
"""The launch plan of the resident kernels (csrc/plan/resident.cpp): within all limits, work for all blocks, bulk copies
of whole 16 bytes, and resident wherever the goals need it."""

import itertools
import random

import pytest

from eca_cuda._ext import _C

DEVICES = {device["name"]: device for device in _C.devices()}
WITH_CLUSTERS = [name for name, device in DEVICES.items() if device["capability"] >= 90]
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
    possible = 0
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
        assert device["capability"] >= 90
        assert plan["ranks"] in (1, 2, 3, 4, 6, 8, 12, 16) and plan["clusters"] >= 1 and plan["clusters"] <= n
        assert plan["runs"] * (plan["ranks"] - 1) < runs <= plan["runs"] * plan["ranks"]  # work for every block
        bulk = [plan["runs"], runs - plan["runs"] * (plan["ranks"] - 1)]  # of the first and of the last block
        assert all(part * length * ITEM[dtype] % 16 == 0 for part in bulk)
        assert plan["slab_bytes"] >= min(plan["runs"], runs) * length * ITEM[dtype]
        assert plan["shared_bytes"] <= device["shared_opt_in"]
        assert plan["threads"] <= min(512, device["max_threads"]) and plan["threads"] % 32 == 0
        resident = device["shared_per_multiprocessor"] // (plan["shared_bytes"] + 1024) * device["multiprocessors"]
        assert plan["clusters"] * plan["ranks"] <= resident
        assert plan["shared_bytes"] >= plan["stages"] * plan["slab_bytes"] + 8 * plan["exchange_numbers"]
    assert possible > 1000


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_every_layer_of_the_goals_is_resident(name: str) -> None:
    for (c, side), dtype, layout, direction, n in itertools.product(
        RESNET + MOBILENET, ITEM, ("contiguous", "channels_last"), ("forward", "backward"), (1, 32, 256)
    ):
        plan = _C.plan(n, c, side * side, dtype, layout, "eca", direction, name, kernel_size=5)["resident"]
        assert plan["possible"], (c, side, dtype, layout, direction, plan)


@pytest.mark.parametrize("dtype", ITEM)
def test_what_can_not_be_resident_says_why(dtype: str) -> None:
    def reason(*args: object, **kwargs: object) -> str:
        return str(_C.plan(*args, "eca", "forward", **kwargs)["resident"]["reason"])

    assert "compute capability 9.0" in reason(8, 64, 49, dtype, "contiguous", device="a100")
    assert "16-byte boundaries" in reason(8, 3, 49, dtype, "contiguous", device="h100")
    assert "shared memory of 16 blocks" in reason(8, 2048, 3136, dtype, "contiguous", device="h100")
    assert "nothing to keep" in reason(0, 64, 49, dtype, "contiguous", device="h100")
    assert "float64" in reason(8, 64, 49, "float64", "contiguous", device="h100")
