# SPDX-License-Identifier: MIT
"""Whole networks: what attention costs a ResNet-50, eager, converted, and with the residual fused (CPU only)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from eca_cuda import convert
from eca_cuda.testing import used_budget

from . import environment, timing
from .correctness import GateError
from .results import ModelRow, Results

STANDARD = timing.Budget(warmup=0, sample=1e-3, total=60, min_rounds=7)
QUICK = timing.Budget(warmup=0, sample=1e-3, total=0, min_rounds=2)


@dataclass(frozen=True)
class Setting:
    """The network and its input; the quick one has four blocks and small images."""

    batch: int = 8
    side: int = 224
    layers: tuple[int, ...] = (3, 4, 6, 3)


STANDARD_SETTING, QUICK_SETTING = Setting(), Setting(batch=2, side=64, layers=(1, 1, 1, 1))


def make_models(setting: Setting) -> dict[str, nn.Module]:
    """ResNet-50 without attention, with SE, and three times the same one with ECA."""

    def resnet(attention: str | None) -> nn.Module:
        torch.manual_seed(0)
        block = {"attn_layer": attention} if attention else {}
        return timm.create_model("resnet50", layers=setting.layers, block_args=block, zero_init_last=False)

    eager = resnet("eca")
    return {
        "plain": resnet(None),
        "se": resnet("se"),
        "eager": eager,
        "converted": convert(copy.deepcopy(eager)),
        "residual": convert(copy.deepcopy(eager), fuse_residual=True),
    }


def measure(setting: Setting, budget: timing.Budget) -> Results:
    """Check the converted models, then time all of them against each other; GateError after a wrong result."""
    measured_in = environment.collect()
    models = make_models(setting)
    check({name: models[name] for name in ("eager", "converted", "residual")})
    images = torch.randn(setting.batch, 3, setting.side, setting.side)
    rows = []
    for phase in ("forward", "training"):
        calls = {name: make_call(model.train(phase == "training"), images, phase) for name, model in models.items()}
        with torch.set_grad_enabled(phase == "training"):
            peaks = {name: peak_bytes(call) for name, call in calls.items()}
            timings = timing.measure({name: [call] for name, call in calls.items()}, budget)
        rows += [ModelRow(name, phase, setting.batch, setting.side, timings[name], peaks[name]) for name in models]
    return Results(measured_in, [], rows)


def make_call(model: nn.Module, images: Tensor, phase: str) -> Callable[[], object]:
    """Inference, or a whole step of training."""
    if phase == "forward":
        return lambda: model(images)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def check(models: dict[str, nn.Module], device: str = "cpu") -> None:
    """Hold every network against ``models["eager"]`` in float64; GateError for a wrong one."""
    images = torch.randn(2, 3, 64, 64, device=device)
    with torch.no_grad():
        exact = copy.deepcopy(models["eager"]).double().eval()(images.double())
        outputs = {name: model.eval()(images) for name, model in models.items()}
    for name, y in outputs.items():
        try:
            used_budget(name, y, outputs["eager"], exact, terms=images[0].numel())
        except AssertionError as error:
            raise GateError(f"models: {error}") from error


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that PyTorch's CPU allocator held during ``call`` beyond what it held before."""
    call()  # the gradients and what libraries keep stay allocated from here on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
