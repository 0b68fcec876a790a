# SPDX-License-Identifier: MIT
"""Whole networks: the cost of attention in a ResNet-50 in inference and in training, on a CPU or a GPU."""

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass

import timm
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from eca_cuda import convert
from eca_cuda.testing import used_budget

from .cases import NETWORKS, PHASES
from .clock import DRY, Cpu
from .correctness import in_layout
from .results import Check, Results, Row
from .run import noting
from .terminal import progress
from .timing import Budget, Call

COMPARED = tuple(NETWORKS)
_CPU_BUDGET = Budget(warmup=0, sample=1e-3, total=60, min_rounds=7)
_GPU_BUDGET = Budget(warmup=0.1, sample=1e-3, total=1.0, min_rounds=7)


@dataclass(frozen=True)
class Setting:
    """Networks timed in the same rounds: ``"forward"`` is inference, ``"training"`` a whole step of SGD.

    ``dtype`` is the one of automatic mixed precision; float32 means none.
    """

    phase: str
    batch: int
    dtype: str = "float32"
    layout: str = "contiguous"
    how: str = "eager"
    names: tuple[str, ...] = COMPARED
    side: int = 224

    def __str__(self) -> str:
        return f"{self.how} {self.phase} batch {self.batch} {self.dtype} {self.layout}"


def settings(device: str, how: Sequence[str] = ("eager",), dry: bool = False) -> list[Setting]:
    """The settings to measure, the most important first; on a GPU in both memory formats (the faster one counts)."""
    if dry:
        return [Setting(phase, 2, "bfloat16", "channels_last", of, COMPARED[::2], 32) for phase in PHASES for of in how]
    if device == "cpu":
        return [Setting(phase, 8, how=of) for of in how for phase in PHASES]
    amp = {"forward": (256, "float16"), "training": (128, "bfloat16")}
    compared = {"eager": COMPARED, "compiled": ("plain", "eager", "converted", "residual", "norm")}
    chosen = itertools.product(how, PHASES, ("channels_last", "contiguous"))
    return [Setting(phase, *amp[phase], layout, of, compared[of]) for of, phase, layout in chosen]


def measure(wanted: Iterable[Setting], clock: Cpu, results: Results, dry: bool = False) -> None:
    """Compare every network with the eager one in float64, then time them; if one is wrong, time nothing."""
    models = make_models((1, 1, 1, 1) if dry else (3, 4, 6, 3), clock.device)
    try:
        check(models, clock.device)
    except AssertionError as error:
        results.add(Check("networks", "failed", f"the result is wrong, so nothing is timed: {error}"))
        return
    cpu = clock.device == "cpu"
    budget = DRY if dry else _CPU_BUDGET if cpu else _GPU_BUDGET
    for setting in progress(list(wanted)):
        shape = (setting.batch, 3, setting.side, setting.side)
        what = ("resnet50", shape, setting.how, setting.phase, setting.dtype, setting.layout)
        if what in {row.job for row in results.rows}:
            continue
        torch.compiler.reset()
        counters.clear()
        with noting(f"networks {setting}", clock, results), torch.set_grad_enabled(setting.phase == "training"):
            calls = {name: make_call(models, name, setting, clock.device) for name in setting.names}
            peaks = {name: clock.peak_bytes(call) for name, call in calls.items()}
            graphs = counters["stats"]["unique_graphs"]
            timings = clock.time(calls, 1, budget)
            if setting.how == "compiled" and not graphs == len(calls) == counters["stats"]["unique_graphs"]:
                raise RuntimeError(f"expected one graph for each network, got {dict(counters['stats'])}")
            results.add(*(Row(*what, name, *astuple(timings[name]), peak_bytes=peaks[name]) for name in calls))
    if state := clock.state():
        results.add(Check("clocks after networks", "done", state))


def make_models(layers: tuple[int, ...], device: str = "cpu") -> dict[str, nn.Module]:
    """ResNet-50 without attention, with SE, with ECA as timm runs it, and with ECA converted in three ways."""

    def resnet(attention: str | None) -> nn.Module:
        torch.manual_seed(0)
        block = {"attn_layer": attention} if attention else {}
        made: nn.Module = timm.create_model("resnet50", layers=layers, block_args=block, zero_init_last=False)
        return made.to(device)

    eager = resnet("eca")
    made = {"plain": resnet(None), "se": resnet("se"), "eager": eager, "converted": convert(copy.deepcopy(eager))}
    made |= {"residual": convert(copy.deepcopy(eager), fuse_residual=True)}
    return made | {"norm": convert(copy.deepcopy(eager), fuse_residual=True, fuse_norm=True)}


def make_call(models: dict[str, nn.Module], name: str, setting: Setting, device: str) -> Call:
    """Inference, or a step of training, in mixed precision. The loss is not scaled, as the gradients are not used."""
    model = models[name].train(setting.phase == "training")
    model.to(memory_format=getattr(torch, f"{setting.layout}_format", torch.channels_last))
    images = in_layout(torch.randn(setting.batch, 3, setting.side, setting.side, device=device), setting.layout)
    run: Callable[[Tensor], Tensor] = model
    if setting.how == "compiled":
        run = torch.compile(model, dynamic=False, fullgraph=True)  # no graph breaks
    half = None if setting.dtype == "float32" else getattr(torch, setting.dtype)

    def forward() -> Tensor:
        with torch.autocast(device, dtype=half, enabled=half is not None):
            return run(images)

    if setting.phase == "forward":
        return forward
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        forward().float().square().mean().backward()
        optimizer.step()

    return step


def check(models: dict[str, nn.Module], device: str = "cpu") -> None:
    """Compare the networks with ECA with ``models["eager"]`` in float64; AssertionError for a wrong one."""
    images = torch.randn(2, 3, 64, 64, device=device)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        with torch.no_grad():
            exact = copy.deepcopy(models["eager"]).double().eval()(images.double())
            outputs = {name: models[name].eval()(images) for name in ("eager", "converted", "residual", "norm")}
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
    for name, y in outputs.items():
        used_budget(name, y, outputs["eager"], exact, terms=images[0].numel())


def warm(wanted: Iterable[tuple[Setting, str]], clock: Cpu, dry: bool = False) -> None:
    """Compile networks to fill Inductor's cache on disk, which all processes share."""
    models = make_models((1, 1, 1, 1) if dry else (3, 4, 6, 3), clock.device)
    for setting, name in wanted:
        with noting(str(setting), clock, Results({})), torch.set_grad_enabled(setting.phase == "training"):
            make_call(models, name, setting, clock.device)()
