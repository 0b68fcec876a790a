# SPDX-License-Identifier: MIT
"""Whole networks on a GPU: ResNet-50-D without attention, and with ECA eager, converted, and with fused residuals."""

import copy
import functools
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import timm
import torch
from torch import Tensor, nn

from eca_cuda import compile_mode, convert

from ..correctness import in_layout
from ..models import check, make_call
from ..results import ModelRow
from ..timing import Budget, Call
from ..timing import measure as measure_calls
from .machine import Machine
from .record import Found
from .session import Session

_BUDGET = Budget(warmup=0.1, sample=1e-3, total=1.5, min_rounds=5)


@dataclass(frozen=True)
class Setting:
    """One table of networks against each other. ``dtype`` is that of automatic mixed precision."""

    phase: str
    batch: int
    dtype: str
    layout: str
    compiled: bool
    side: int = 224

    def __str__(self) -> str:
        how = "compiled" if self.compiled else "eager"
        return f"{self.phase} batch {self.batch} {self.dtype} {self.layout} {how}"


def settings(dry: bool = False) -> list[Setting]:
    """What is measured, the most valuable first. Five networks are compiled in a compiled setting, which takes a minute
    or some, and longest in training; the others take seconds.
    """
    if dry:
        return [Setting(phase, 2, "bfloat16", "contiguous", False, 32) for phase in ("forward", "training")]
    first = [
        Setting("forward", 256, "float16", "channels_last", False),
        Setting("training", 128, "bfloat16", "channels_last", False),
        Setting("forward", 256, "float16", "channels_last", True),
        Setting("forward", 1, "float16", "channels_last", False),
        Setting("forward", 64, "float16", "channels_last", False),
        Setting("training", 64, "bfloat16", "channels_last", False),
        Setting("training", 128, "bfloat16", "channels_last", True),
    ]
    batches = [("forward", 256), ("training", 128), ("forward", 1), ("forward", 64), ("training", 64)]
    formats = list(itertools.product(("channels_last", "contiguous"), ("float16", "bfloat16")))
    rest = [
        Setting(phase, batch, dtype, layout, compiled)
        for compiled in (False, True)
        for layout, dtype in formats
        for phase, batch in batches
    ]
    return list(dict.fromkeys([*first, *rest]))


def measure(session: Session) -> int:
    """The step ``models``."""
    machine = session.machine
    models = functools.cache(lambda: make_models(machine))
    return session.each(settings(machine.dry), lambda setting: run_setting(setting, models(), machine))


def make_models(machine: Machine) -> dict[str, nn.Module]:
    """The networks, checked against the eager one in float64."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        smaller = {"layers": (1, 1, 1, 1)} if machine.dry else {}
        made: nn.Module = timm.create_model(name, zero_init_last=False, **smaller)
        return made.to(machine.device)

    eager = make("ecaresnet50d")
    models = {
        "plain": make("resnet50d"),
        "eager": eager,
        "converted": convert(copy.deepcopy(eager)),
        "residual": convert(copy.deepcopy(eager), fuse_residual=True),
    }
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        check({name: models[name] for name in ("eager", "converted", "residual")}, machine.device)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    return models


def run_setting(setting: Setting, models: dict[str, nn.Module], machine: Machine) -> Found:
    """The rows of all networks in one setting."""
    shape = (setting.batch, 3, setting.side, setting.side)
    images = in_layout(torch.randn(shape, device=machine.device), setting.layout)
    memory = torch.channels_last if setting.layout == "channels_last" else torch.contiguous_format
    training = setting.phase == "training"
    for model in models.values():
        model.to(memory_format=memory).train(training)
    calls = {name: _call(model, images, setting, machine) for name, model in models.items()}
    if setting.compiled:
        inline = _call(models["converted"], images, setting, machine)
        calls["inline"] = lambda: _in_mode_inline(inline)
    budget = replace(_BUDGET, warmup=0, total=0, min_rounds=2) if machine.dry else _BUDGET
    before = machine.state()
    with torch.set_grad_enabled(training):
        peaks = {name: machine.peak_bytes(call) for name, call in calls.items()}
        timings = measure_calls({name: [call] for name, call in calls.items()}, budget, stopwatch=machine.stopwatch)
    rows = [
        ModelRow(
            name,
            setting.phase,
            setting.batch,
            setting.side,
            timings[name],
            peaks[name],
            setting.dtype,
            setting.layout,
            setting.compiled,
        )
        for name in calls
    ]
    state = {"job": str(setting), "before": before, "after": machine.state()}
    return {"models": [asdict(row) for row in rows], "states": [state]}


def _call(model: nn.Module, images: Tensor, setting: Setting, machine: Machine) -> Call:
    """Inference, or a step of training, in mixed precision. The loss is not scaled: nobody looks at the gradients."""
    run: Callable[..., Tensor] = torch.compile(model, dynamic=False) if setting.compiled else model
    dtype = getattr(torch, setting.dtype)

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(machine.device, dtype=dtype):
                return run(x).float()

    return make_call(Mixed(), images, setting.phase)


def _in_mode_inline(call: Call) -> None:
    with compile_mode("inline"):
        call()
