# SPDX-License-Identifier: MIT
"""Which modules of a model compute one of the three attentions, whatever their classes are called.

A module is recognised in two steps. Its parameters must be those of a variant and nothing else, and a copy of it, with
random parameters, must compute in float64 what the reference computes. The second step is what makes the first safe: a
subclass with its own forward, another gate, another pooling, an addition inside or a dropout all show as other numbers.
"""

import copy
import inspect
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from . import reference
from .modules import recomputes_weights, refreshed
from .trial import LeftAlone, generators_kept, without_side_effects

# eca_layer, ECA, ECABlock, EcaModule, CecaModule, EfficientChannelAttn and their like, but not ECAPA or Decay.
_NAME = re.compile(
    r"(^|_)c?eca($|_|layer|module|block)|(^|_)(Eca|Ceca)($|_|[A-Z])|(?:^|_|[a-z])C?ECA($|_|[A-Z](?![A-Z]))|EfficientChannelAtt"
)
_GATES = ("sigmoid", "hard_sigmoid")
_PADDINGS = ("zeros", "circular")
# Spatial sizes of what a module is tried on: images, volumes, sequences.
_SIZES = (((5, 5), (4, 7)), ((3, 4, 5), (2, 3, 3)), ((25,), (7,)))


@dataclass(frozen=True)
class Recipe:
    """What a module computes: ``functional.<variant>(x, *parameters of the holders, **options)``."""

    variant: str
    holders: tuple[str, ...]  # paths of the submodules that hold the parameters, in the order of the arguments
    options: Mapping[str, Any]
    ranks: tuple[int, ...] = ()  # the dimensions of x that this was found to hold for

    def parameters(self, module: nn.Module) -> list[Tensor]:
        """The arguments after ``x``, after whatever recomputes them (pruning, old weight and spectral norm)."""
        found = []
        for path in self.holders:
            layer: Any = module
            for name in path.split("."):
                layer = getattr(layer, name)
            if layer._forward_pre_hooks:
                refreshed(layer)
            found.append(layer.weight)
            if layer.bias is not None:
                found.append(layer.bias)
        return found


@dataclass(frozen=True)
class Unsupported:
    """Attention, or something close to it, that stays as it is, and why."""

    reason: str


def recognise(module: nn.Module) -> Union[Recipe, Unsupported, None]:
    """What ``module`` computes, why that cannot be said of a module that looks like attention, or None."""
    holders, others = _holders(module)
    candidates = [] if others else list(_candidates(holders))
    if not candidates and not _looks_like_attention(module, holders, others):
        return None
    if any(recognise(child) is not None for child in module.modules() if child is not module):
        return None  # a container or a wrapper: what counts is inside
    if "forward" in vars(module):
        return Unsupported("its forward was replaced on the instance")
    if others:
        return Unsupported(f"it has parameters or buffers of its own: {', '.join(others)}")
    if not candidates:
        return Unsupported(f"its layers are not those of ECA: {_describe(holders)}")
    reason = _obstacle(module, holders)
    return Unsupported(reason) if reason else _try(module, candidates)


def _holders(module: nn.Module, prefix: str = "") -> tuple[dict[str, nn.Module], list[str]]:
    """The convolutions and linear layers below ``module``, and the names of all other parameters and buffers."""
    found: dict[str, nn.Module] = {}
    own = itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    others = [prefix + name for name, _ in own]
    for name, child in module.named_children():
        if isinstance(child, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            found[prefix + name] = child
        else:
            below, foreign = _holders(child, f"{prefix}{name}.")
            found |= below
            others += foreign
    return found, others


def _looks_like_attention(module: nn.Module, holders: dict[str, nn.Module], others: list[str]) -> bool:
    """Close to ECA by its name, or, as timm's mlp mode, by a convolution over channels that widens and narrows."""
    if not (holders or others) or type(module) is nn.Sequential:
        return False
    if _NAME.search(type(module).__name__) and not _is_network(module):
        return True
    convs = [layer for layer in holders.values() if isinstance(layer, nn.Conv1d)]
    ends = (convs[0].in_channels, convs[-1].out_channels) if convs else None
    return not others and len(convs) == len(holders) <= 2 and ends == (1, 1)


def _is_network(module: nn.Module) -> bool:
    """Whether it convolves feature maps: then it contains attention and is not attention itself."""
    convs = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
    return any((m.in_channels, m.out_channels) != (1, 1) for m in convs)


def _candidates(holders: dict[str, nn.Module]) -> Iterator[Recipe]:
    """Every variant and choice of options whose parameters have these shapes."""
    convs = {name: m for name, m in holders.items() if isinstance(m, nn.Conv1d)}
    linears = {name: m for name, m in holders.items() if isinstance(m, nn.Linear)}
    if len(convs) + len(linears) < len(holders):
        return
    across = all((m.in_channels, m.out_channels) == (1, 1) for m in convs.values())
    depthwise = all(m.groups == m.in_channels == m.out_channels for m in convs.values())
    sizes = [m.kernel_size[0] for m in convs.values()]
    rows = [m.out_features for m in linears.values()]
    if (len(convs), rows) == (1, []) and across:
        yield from _recipes("eca", convs, padding_mode=_PADDINGS, gate=_GATES)
    elif (sizes, rows) == ([3, 5, 7], [3]) and (across or depthwise):
        ordered = {**convs, **linears}
        if across:
            yield from _recipes("multi_kernel_eca", ordered, cross_channel=(True,), padding_mode=_PADDINGS, gate=_GATES)
        if depthwise:
            yield from _recipes("multi_kernel_eca", ordered, gate=_GATES)
    elif len(convs) == len(rows) == 2 and rows[1] == 2 and across and sizes[0] == sizes[1]:
        ordered = {**convs, **linears}
        yield from _recipes(
            "bidirectional_eca", ordered, final_sigmoid=(True, False), padding_mode=_PADDINGS, gate=_GATES
        )


def _recipes(variant: str, holders: Mapping[str, nn.Module], **options: tuple[Any, ...]) -> Iterator[Recipe]:
    for values in itertools.product(*options.values()):
        yield Recipe(variant, tuple(holders), dict(zip(options, values, strict=True)))


def _obstacle(module: nn.Module, holders: dict[str, Any]) -> Optional[str]:
    """What the functions do not offer, in a module with the parameters of a variant."""
    for name, child in module.named_modules():
        hooks = [*child._forward_hooks.values(), *child._backward_hooks.values(), *child._backward_pre_hooks.values()]
        hooks += [hook for hook in child._forward_pre_hooks.values() if not recomputes_weights(hook)]
        if name and hooks:
            return f"{name} has hooks, which would no longer run: fused attention never calls it"
    convs = {name: layer for name, layer in holders.items() if isinstance(layer, nn.Conv1d)}
    for name, layer in convs.items():
        if layer.kernel_size[0] % 2 == 0 or (layer.stride, layer.dilation) != ((1,), (1,)):
            return f"{name}: expected an odd kernel size, stride 1 and dilation 1, got {layer}"
        if layer.bias is not None and len(convs) > 1:
            return f"{name}: expected no bias, got {layer}"
    for name in holders.keys() - convs.keys():
        if holders[name].bias is None:
            return f"{name}: expected a bias, got {holders[name]}"
    return None


def _try(module: nn.Module, candidates: list[Recipe]) -> Union[Recipe, Unsupported]:
    """The candidate that computes what a copy of ``module`` computes, for x of at least one rank."""
    found: dict[int, Recipe] = {}
    refusals: list[Exception] = []
    with torch.no_grad(), generators_kept():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the GPU's generator
        for sizes in _SIZES:
            try:
                found[2 + len(sizes[0])] = _matching(_random_copy(module, candidates[0]), candidates, sizes)
            except Exception as error:  # whatever a stranger's forward may raise
                refusals.append(error)
    if found:
        recipe = next(iter(found.values()))
        return replace(recipe, ranks=tuple(rank for rank, other in found.items() if other == recipe))
    # A reason says more than an error, which for x of another rank is only natural.
    refusal = next((error for error in refusals if isinstance(error, LeftAlone)), refusals[0])
    first_line = (str(refusal) or type(refusal).__name__).splitlines()[0]
    return Unsupported(first_line if isinstance(refusal, LeftAlone) else f"it could not be tried: {first_line}")


def _random_copy(module: nn.Module, recipe: Recipe) -> nn.Module:
    recipe.parameters(module)  # a weight that pruning recomputed with gradients could not be copied
    without_hooks = copy.copy(module)
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(without_hooks, name, {})
    clone = copy.deepcopy(without_hooks)
    if any(p.is_meta for p in clone.parameters()):
        clone.to_empty(device="cpu")
    clone = clone.to("cpu", torch.float64)
    for p in clone.parameters():
        p.normal_()
    return clone


def _matching(clone: nn.Module, candidates: list[Recipe], sizes: tuple[tuple[int, ...], ...]) -> Recipe:
    """The candidate that computes what ``clone`` computes on x of these sizes, in training and in evaluation."""
    _check_arguments(clone)
    c = _channels(clone)
    inputs = [torch.randn(2, c, *size, dtype=torch.float64, device="cpu") for size in sizes]
    inside = [m for name, m in clone.named_modules() if not name.startswith(candidates[0].holders)]
    remaining, error = candidates, float("inf")
    for training, x in itertools.product((True, False), inputs):
        clone.train(training)
        with without_side_effects(*inside):
            y = clone(x.clone())
            if not isinstance(y, Tensor) or y.shape != x.shape:
                raise LeftAlone("its output is not a tensor of the shape of its input")
            errors = [float((y - _reference(recipe, clone, x)).abs().max()) for recipe in remaining]
            # float64 against float64, some steps perhaps in float32: 1e-5 is rounding, another formula gives 1e-2.
            remaining = [recipe for recipe, e in zip(remaining, errors, strict=True) if e < 1e-5]
            error = min(errors)
            if not remaining:
                kinds = ", ".join(type(m).__name__ for m in clone.children())
                raise LeftAlone(f"it computes something else: off by {error:.1e} from the nearest variant ({kinds})")
    return remaining[0]


def _check_arguments(module: nn.Module) -> None:
    if type(module).forward is nn.Module.forward:
        raise LeftAlone("it has no forward: what calls its layers is elsewhere")
    arguments = list(inspect.signature(type(module).forward).parameters.values())[1:]
    if [a.kind for a in arguments] != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:
        raise LeftAlone(f"its forward takes ({', '.join(map(str, arguments))}), expected one argument")


def _channels(clone: nn.Module) -> int:
    """As many as the layers, or else a number among the attributes, ask for."""
    layers = [m for m in clone.modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    c = max(m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in layers)
    longest = max(m.kernel_size[0] for m in layers if isinstance(m, nn.Conv1d))
    if c == 1:
        named = [getattr(clone, name, None) for name in ("channels", "channel", "in_channels", "c", "dim")]
        c = next((value for value in named if isinstance(value, int) and value > longest), max(16, 2 * longest))
    return c


def _reference(recipe: Recipe, clone: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = getattr(reference, recipe.variant)(x, *recipe.parameters(clone), **recipe.options)
    return y


def _describe(holders: dict[str, nn.Module]) -> str:
    return ", ".join(f"{name} {layer}" for name, layer in holders.items())
