# SPDX-License-Identifier: MIT
"""Fused attention in models that exist: ``convert``, ``revert`` and ``conversion_report``."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import torch
from torch import Tensor, fx, nn

from . import functional
from .blocks import Fusable, FusedBlock, attention_of, fuse
from .functional import Activation
from .modules import BidirectionalECA, DynamicMultiKernelECA, EfficientChannelAttention
from .recognition import Recipe, Unsupported, recognise
from .swap import Swapped, is_wrapped, restore, swap

__all__ = ["ConversionReport", "Finding", "conversion_report", "convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)
_OURS = (EfficientChannelAttention, DynamicMultiKernelECA, BidirectionalECA)


class FusedAttention(Swapped):
    """The forward of a converted attention module.

    Its own forward runs where x has a rank that this was not tried on (torch.fx traces without ranks), or comes by
    another name.
    """

    _eca_cuda: Recipe

    def forward(
        self,
        x: Optional[Tensor] = None,
        residual: Optional[Tensor] = None,
        activation: Activation = None,
        **by_its_name: Tensor,
    ) -> Tensor:
        recipe = self._eca_cuda
        y: Tensor
        if x is None:
            y = super().forward(**by_its_name)
            return y
        if not (isinstance(x, fx.Proxy) or x.dim() in recipe.ranks):
            y = super().forward(x)
            y = y if residual is None else y + residual
            return torch.relu(y) if activation else y
        parameters = recipe.parameters(self)
        function = getattr(functional, recipe.variant)
        y = function(x, *parameters, residual=residual, activation=activation, **recipe.options)
        return y


def convert(model: Model, *, fuse_residual: bool = False) -> Model:
    """Make every channel attention in ``model`` that computes ECA or a variant of it run fused. In place.

    Recognised by what they compute, whatever their class is called: timm's ``EcaModule`` and ``CecaModule``, the
    official ``eca_layer``, the originals of our layers, and look-alikes. Modules stay the same objects with the same
    parameters, state-dict keys, hooks, mode, device and dtype; optimizers, checkpoints and wrappers do not notice.
    ``conversion_report`` says what was converted, what was not, and why. Convert before ``torch.compile``.

    Args:
        model: any module; attention is searched for in all of it.
        fuse_residual: also let the attention of a residual block add the shortcut and apply the ReLU, in the same pass,
            where torch.fx shows that it is safe. The structure and attributes of the block are then as they were at
            conversion; where the attention or the ReLU are replaced or given hooks later, its own forward runs again.

    Returns:
        ``model``. Converting again changes nothing; :func:`revert` undoes it.

    Raises:
        TypeError: if ``model`` is not an ``nn.Module``.
    """
    _check_model(model)
    for module, answer in [(module, answer) for _, module, answer in _attention(model)]:
        if isinstance(answer, Recipe) and not _is_fused(module):
            swap(module, FusedAttention, answer)
    if fuse_residual:
        for block, answer in [(block, answer) for _, block, answer in _blocks(model)]:
            if isinstance(answer, Fusable):
                swap(block, FusedBlock, answer.modules, answer.source)
    if not any(map(_is_fused, model.modules())):
        warnings.warn("convert: no attention in the model could be fused, see conversion_report(model)", stacklevel=2)
    return model


def revert(model: Model) -> Model:
    """Undo :func:`convert`, exactly, with or without ``fuse_residual``; returns ``model``.

    Raises:
        RuntimeError: if ``fully_shard`` or the like changed a module's class since; then nothing is reverted.
    """
    _check_model(model)
    swapped = {path: module for path, module in model.named_modules() if isinstance(module, Swapped)}
    for path, module in swapped.items():
        if is_wrapped(module):
            kind = type(module).__name__
            raise RuntimeError(f"revert: {path or 'the model'} was made a {kind} since; revert before fully_shard")
    for module in swapped.values():
        restore(module)
    return model


@dataclass(frozen=True)
class Finding:
    """One module that is, or looks like, attention, or one residual block around it."""

    path: str
    kind: str
    status: str  # "fused", "could be fused" or "left alone"
    detail: str  # what it computes, or why it was left alone


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` did or would do; ``print`` it."""

    attention: tuple[Finding, ...]
    residual: tuple[Finding, ...]

    def __str__(self) -> str:
        return "\n".join([*_summary("attention", self.attention), *_summary("residual blocks", self.residual)])


def conversion_report(model: nn.Module) -> ConversionReport:
    """What is fused in ``model``, what :func:`convert` could fuse, and what it leaves alone and why; changes nothing.

    The residual blocks are those around attention that is fused already or could be.
    """
    _check_model(model)
    attention = []
    for path, module, answer in _attention(model):
        possible = "fused" if _is_fused(module) else "could be fused"
        attention.append(_finding(path, module, answer, possible))
    residual = []
    for path, block, verdict in _blocks(model):
        residual.append(_finding(path, block, verdict, "fused" if isinstance(block, FusedBlock) else "could be fused"))
    return ConversionReport(tuple(attention), tuple(residual))


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")


def _is_fused(module: nn.Module) -> bool:
    return isinstance(module, (FusedAttention, *_OURS))


def _attention(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Path, module and what it computes, of all that is or looks like attention."""
    for path, module in list(model.named_modules()):
        if isinstance(module, FusedAttention):
            yield path, module, module._eca_cuda
        elif isinstance(module, _OURS):
            yield path, module, "one of eca_cuda's layers"
        elif (answer := recognise(module)) is not None:
            yield path, module, answer


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Path, module and what ``fuse`` says, of all that calls attention."""
    attention = {module for _, module, answer in _attention(model) if not isinstance(answer, Unsupported)}
    for path, module in list(model.named_modules()):
        if isinstance(module, FusedBlock):
            yield path, module, "the shortcut is added by the attention"
        elif module not in attention and (names := attention_of(module, attention.__contains__)):
            yield path, module, fuse(module, names)


def _finding(path: str, module: nn.Module, answer: Any, possible: str) -> Finding:
    kind = type(module)._eca_cuda_identity[1] if isinstance(module, Swapped) else type(module)
    if isinstance(answer, Unsupported):
        return Finding(path, kind.__name__, "left alone", answer.reason)
    if isinstance(answer, Recipe):
        options = ", ".join(f"{name}={value!r}" for name, value in answer.options.items())
        answer = f"{answer.variant}({options})"
    detail = "the shortcut can be added by the attention" if isinstance(answer, Fusable) else answer
    return Finding(path, kind.__name__, possible, detail)


def _summary(what: str, findings: tuple[Finding, ...]) -> list[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.status, f.kind, f.detail), []).append(f.path or "(the model)")
    lines = [f"{what}: {len(findings)} found"]
    for (status, kind, detail), paths in groups.items():
        shown = paths if len(paths) <= 3 else [*paths[:2], "...", paths[-1]]
        lines.append(f"  {status}: {len(paths)} x {kind}, {detail}: {', '.join(shown)}")
    return lines
