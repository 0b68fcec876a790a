# SPDX-License-Identifier: MIT
"""A sample has the same bits alone and in a batch: always on the CPU and in the two-phase CUDA kernels, and in the
one-pass ones with ECA_CUDA_BATCH_INVARIANT=1, which is read once per process."""

import functools
import itertools
import json
import os
import subprocess
import sys
from typing import Any

import emulated
import pytest
import torch
from cases import DEFAULTS
from layouts import LAYOUTS

from eca_cuda._ext import _C
from eca_cuda.testing import evaluate, make_x

CUTS = ("path", "blocks_per_sample", "position_parts", "threads", "lanes", "straddle", "vector", "tiling")
SIZES = ((256, 3136), (512, 784), (1024, 196), (2048, 49), (64, 12544), (24, 1849), (96, 33))
BATCHES = (1, 2, 7, 32, 256)
# What a tuning table may hold: something for one batch size only, and for all.
RULES = tuple(
    {"direction": "forward", "dtype": "float16", "layout": "planes", "n": n, "c": c, "s": s}
    | {"blocks": blocks, "threads": 256}
    for n, blocks in ((32, -1), (7, 16), (0, 12))
    for c, s in SIZES
)
DEVICE = {"shared": 128 << 10, "multiprocessors": 4}


def plans_are_one() -> bool:
    """Whether plans do not depend on the batch size, on every known device."""
    directions, layouts = ("forward", "backward"), ("contiguous", "channels_last")
    calls = itertools.product(SIZES, ("float32", "float16"), layouts, ("eca",), directions)
    devices = [device["name"] for device in _C.devices()]
    for ((c, s), *call), device in itertools.product(calls, devices):
        made = [_C.plan(n, c, s, *call, device) for n in BATCHES]
        if len({str([plan.get(cut) for cut in CUTS]) for plan in made}) > 1:
            return False
    return True


def samples_are_as_alone(dtype: torch.dtype, layout: str, device: str = "cpu") -> bool:
    """Whether each sample has the bits it has alone."""
    shape = (7, 24, 17, 19)
    x, residual, grad_y = (LAYOUTS[layout](make_x(shape, dtype, seed=seed, device=device)) for seed in range(3))
    parameters = DEFAULTS[0].variant.make_parameters(shape[1], dtype, device=device)

    def results(*maps: torch.Tensor) -> dict[str, torch.Tensor]:
        options: dict[str, Any] = {"residual": maps[1], "grad_y": maps[2], "activation": "relu"}
        named = evaluate(DEFAULTS[0].variant.function, maps[0], parameters, **options).results
        return {name: named[name] for name in ("y", "grad_x", "grad_residual")}

    together = results(x, residual, grad_y)
    for n in range(len(x)):
        alone = results(*(t[n : n + 1] for t in (x, residual, grad_y)))
        if not all(torch.equal(alone[name], together[name][n : n + 1]) for name in alone):
            return False
    return True


def collect() -> dict[str, Any]:
    """The results of this process."""
    every = tuple(itertools.product((torch.float32, torch.float16), ("contiguous", "channels_last")))
    found: dict[str, Any] = {"plans": plans_are_one()}
    _C.set_tuning(list(RULES))
    found["tuned plans"] = plans_are_one()
    _C.set_tuning([])
    if not emulated.missing():
        emulated.set_device(**DEVICE)
        with emulated.emulated(schedules=(0,)):
            found["emulated"] = [samples_are_as_alone(*way) for way in every]
            found["two-phase"] = [
                samples_are_as_alone(torch.float64, layout) for layout in ("contiguous", "channels_last")
            ]
        assert emulated.launches() > 0
    if torch.cuda.is_available():
        found["cuda"] = [samples_are_as_alone(*way, device="cuda") for way in every]
    return found


@functools.cache
def collected(**environment: str) -> dict[str, Any]:
    """``collect`` in a separate process."""
    command = [sys.executable, "-c", "import json, test_batch_invariance as t; print(json.dumps(t.collect()))"]
    here = os.path.dirname(__file__)
    paths = os.pathsep.join((here, os.path.dirname(here)))
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_with_the_switch_plans_and_bits_do_not_depend_on_the_batch() -> None:
    found = collected(ECA_CUDA_BATCH_INVARIANT="1")
    assert all(all(found.get(name, ())) for name in ("emulated", "two-phase", "cuda")) and found["plans"], found
    assert found["tuned plans"], found


def test_without_it_the_fastest_plan_for_a_batch_is_taken() -> None:
    """So the test above can fail. In two-phase kernels, which alone do float64, nothing depends on the switch."""
    found = collected()
    assert not found["plans"] and ("emulated" not in found or not all(found["emulated"])), found
    assert all(found.get("two-phase", ())), found


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_on_the_cpu_always(dtype: torch.dtype, layout: str) -> None:
    assert samples_are_as_alone(dtype, layout)
