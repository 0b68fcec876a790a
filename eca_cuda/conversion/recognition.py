# SPDX-License-Identifier: MIT
"""Which modules of a model compute one of the three variants, whatever their classes are called.

A module is recognised in two steps: its parameters must be exactly those of a variant, and a copy of it must compute
what the reference computes (``comparison``).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import nn

from ..variants.bidirectional import BidirectionalECA
from ..variants.eca import EfficientChannelAttention
from ..variants.multi_kernel import DynamicMultiKernelECA
from .basis import has_modified_call
from .comparison import USE_INDUCTOR, MaybePart, compare
from .fused_attention import FusedAttention
from .recipe import Recipe
from .replica import HOLDERS
from .swap import STATE, Swapped, derived, own_class
from .trial import LeftAlone
from .watch import Conversion

# eca_layer, ECA, ECABlock, EcaModule, CecaModule, EfficientChannelAttn and their like, but not ECAPA or Decay.
_NAME = re.compile(
    r"(^|_)c?eca($|_|layer|module|block)|(^|_)(Eca|Ceca)($|_|[A-Z])|(?:^|_|[a-z])C?ECA($|_|[A-Z](?![A-Z]))|EfficientChannelAtt"
)
_GATES = ("sigmoid", "hard_sigmoid")
_PADDINGS = ("zeros", "circular")


@dataclass(frozen=True)
class Unsupported:
    """The reason why a module that is or looks like attention is left alone."""

    reason: str
    is_part: bool = False  # it may be part of a module that computes a variant


OWN_LAYERS = (EfficientChannelAttention, DynamicMultiKernelECA, BidirectionalECA)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Answer = Union[Recipe, Unsupported, str]
_Shapes = tuple[torch.Size, ...]


def recognise_all(model: nn.Module) -> dict[str, tuple[nn.Module, Answer]]:
    """The modules that are or look like attention, by path, with what they compute or why they are left alone.

    A module that contains attention is not attention itself.
    """
    modules = list(model.named_modules())
    converted = [m for _, m in modules if isinstance(m, FusedAttention)]
    tried: list[tuple[type, _Shapes, Conversion[Recipe]]] = []
    in_converted = {part for m in converted for part in m.modules() if part is not m}
    found: dict[nn.Module, Answer] = {
        m: _recognise(m, tried) or Unsupported("it has no layers of ECA") for m in converted
    }
    for _, module in sorted(modules, key=lambda item: sum(1 for _ in item[1].modules())):  # submodules come first
        inside = [m for m in module.modules() if m in found]
        if module in in_converted or not all(_is_part(found[m]) for m in inside):
            continue
        answer = _recognise(module, tried)
        if isinstance(answer, Recipe):
            for part in inside:
                del found[part]
        if answer is not None and (isinstance(answer, Recipe) or not inside):
            found[module] = answer
    return {path: (module, found[module]) for path, module in modules if module in found}


def _is_part(answer: Answer) -> bool:
    return isinstance(answer, Unsupported) and answer.is_part


def convolutions_in_blocks(model: nn.Module, found: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Path, class and reason of modules with a convolution like ECA's, which may compute ECA among other things."""
    seen = set()
    for path, conv in model.named_modules():
        if type(conv) is not nn.Conv1d or (conv.in_channels, conv.out_channels, conv.stride) != (1, 1, (1,)):
            continue
        owner = path.rpartition(".")[0]
        while owner and type(model.get_submodule(owner)) in _CONTAINERS:
            owner = owner.rpartition(".")[0]
        if owner == path or owner in seen or any(f"{path}.".startswith(f"{p}." if p else "") for p in found):
            continue
        seen.add(owner)
        reason = (
            f"{path[len(owner) :].lstrip('.')} is a convolution like ECA's in a forward that does more. {USE_INDUCTOR}"
        )
        yield owner, type(model.get_submodule(owner)).__name__, reason


def _recognise(module: nn.Module, tried: list[tuple[type, _Shapes, Conversion[Recipe]]]) -> Optional[Answer]:
    if isinstance(module, OWN_LAYERS):
        return "one of eca_cuda's layers"
    if isinstance(module, FusedAttention) and module._eca_cuda.holds_for(module):
        return module._eca_cuda.found
    kind = own_class(module)
    if isinstance(module, torch.jit.ScriptModule):
        is_named = _NAME.search(module.original_name)
        return Unsupported("it is TorchScript, whose forward cannot be replaced") if is_named else None
    holders, others = _holders(module)
    candidates = [] if others else list(_candidates(holders))
    if not candidates and not _looks_like_attention(kind, module, holders, others):
        return None
    if "forward" in vars(module):
        return Unsupported("its forward was replaced on the instance")
    if kind.__getattribute__ is not nn.Module.__getattribute__ or kind.__getattr__ is not nn.Module.__getattr__:
        return Unsupported("its class overrides __getattribute__ or __getattr__")
    if STATE in vars(module) and not isinstance(module, Swapped):
        return Unsupported(f"it has an attribute {STATE}")
    if others:
        return Unsupported(f"it has parameters outside of convolutions and linear layers: {', '.join(others)}")
    if not candidates:
        return Unsupported(f"expected the layers of a variant of ECA, got {_describe(holders)}")
    reason = _obstacle(module, holders)
    if reason:
        return Unsupported(reason)
    shapes = tuple(p.shape for p in module.parameters())
    for other, others_shapes, conversion in tried:
        if other is kind and others_shapes == shapes and conversion.holds_for(module):
            return conversion.found  # it depends on the same values as a module that was tried
    try:
        recipe = compare(module, candidates)
    except LeftAlone as refusal:
        return Unsupported(str(refusal), isinstance(refusal, MaybePart))
    except Exception as error:  # from user code, such as a property
        return Unsupported(f"it could not be tried: {type(error).__name__}: {error}")
    try:
        derived(FusedAttention, kind)
    except Exception as error:  # a metaclass may refuse
        return Unsupported(f"no class can be derived from its class: {error}")
    tried.append((kind, shapes, Conversion(recipe)))
    return recipe


def _holders(module: nn.Module) -> tuple[dict[str, nn.Module], list[str]]:
    """The convolutions and linear layers below ``module``, and the names of all other parameters."""
    found: dict[str, nn.Module] = {}
    others: list[str] = []
    for path, m in module.named_modules():
        if path.startswith(tuple(f"{holder}." for holder in found)):
            continue
        if isinstance(m, HOLDERS) and m is not module:
            found[path] = m
        else:
            others += [f"{path}.{name}" if path else name for name, _ in m.named_parameters(recurse=False)]
    return found, others


def _looks_like_attention(
    kind: type[nn.Module], module: nn.Module, holders: dict[str, nn.Module], others: list[str]
) -> bool:
    """Whether it has the name of ECA, or, like timm's mlp mode, convolutions from one channel to one channel."""
    if not (holders or others) or kind in _CONTAINERS:
        return False
    if _NAME.search(kind.__name__) and not _is_network(module):
        return True
    convs = [layer for layer in holders.values() if isinstance(layer, nn.Conv1d)]
    ends = (convs[0].in_channels, convs[-1].out_channels) if convs else None
    return not others and len(convs) == len(holders) <= 2 and ends == (1, 1)


def _is_network(module: nn.Module) -> bool:
    """Whether it has 2-D or 3-D convolutions of several channels: then it is a network that may contain attention."""
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
    """A property of a module with the parameters of a variant that the functions do not support."""
    for name, child in module.named_modules():
        if name and "forward" in vars(child):
            return f"the forward of {name} was replaced on the instance, but fused attention does not call {name}"
        if name and has_modified_call(child):
            return f"{name} has hooks, but fused attention does not call {name}"
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


def _describe(holders: dict[str, nn.Module]) -> str:
    return ", ".join(f"{name} {layer}" for name, layer in holders.items())
