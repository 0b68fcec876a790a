# SPDX-License-Identifier: MIT
"""Fused attention in models that exist: ``convert``, ``revert`` and ``conversion_report``."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from .blocks import Fusable, FusedBlock, attention_of, change_of, fuse
from .fused_attention import FusedAttention
from .recipe import Recipe
from .recognition import OWN_LAYERS, Answer, Unsupported, gates_in_blocks, recognise_all
from .swap import STATE, Swapped, is_wrapped, own_class, restore, swap
from .watch import Conversion

__all__ = ["ConversionReport", "Finding", "conversion_report", "convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *, fuse_residual: bool = False) -> Model:
    """Make every channel attention in ``model`` that computes ECA or a variant of it run fused. In place.

    Recognised by what they compute, whatever their class is called: timm's ``EcaModule`` and ``CecaModule``, the
    official ``eca_layer``, the originals of our layers, and look-alikes. Modules stay the same objects with the same
    parameters, state-dict keys, hooks, mode, device and dtype; optimizers, checkpoints and wrappers do not notice.
    ``conversion_report`` says what was converted, what was not, and why. Convert before ``torch.compile``.

    Where something that a forward rests on is changed later (a module in it, its hooks or attributes), the module's own
    forward runs from then on, until it is changed back. An error on the way leaves the model as it was.

    Args:
        model: any module; attention is searched for in all of it.
        fuse_residual: also let the attention of a residual block add the shortcut and apply the ReLU, in the same pass,
            where torch.fx shows that it is safe.

    Returns:
        ``model``. Converting again changes nothing; :func:`revert` undoes it.

    Raises:
        TypeError: if ``model`` is not an ``nn.Module``.
    """
    _check_model(model)
    with ExitStack() as undo:  # in the case of an error
        attention = recognise_all(model)
        for module, answer in attention.values():
            if isinstance(answer, Recipe):
                _convert(module, answer, undo)
        if fuse_residual:
            for _, block, verdict in list(_blocks(model, attention)):
                if isinstance(verdict, Fusable):
                    undo.callback(_put_back, block, type(block), vars(block).get(STATE))
                    if isinstance(block, FusedBlock):  # it changed since it was converted
                        restore(block)
                    swap(block, FusedBlock, Conversion(verdict), verdict.source)
        if not any(_is_fused(module) for module in model.modules()):
            message = "convert: no attention in the model could be fused, see conversion_report(model)"
            warnings.warn(message, stacklevel=2)
        undo.pop_all()
    return model


def _convert(module: nn.Module, recipe: Recipe, undo: ExitStack) -> None:
    undo.callback(_put_back, module, type(module), vars(module).get(STATE))
    if not isinstance(module, FusedAttention):
        swap(module, FusedAttention, Conversion(recipe))
    elif module._eca_cuda.found is not recipe:  # it changed since it was converted
        module._eca_cuda = Conversion(recipe)


def _put_back(module: nn.Module, kind: type, state: Any) -> None:
    module.__class__ = kind
    vars(module).pop(STATE, None)
    if state is not None:
        vars(module)[STATE] = state


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
    found = recognise_all(model)
    attention = [_attention(path, module, answer) for path, (module, answer) in found.items()]
    attention += [Finding(path, kind, "left alone", reason) for path, kind, reason in gates_in_blocks(model, found)]
    residual = []
    for path, block, verdict in _blocks(model, found):
        change = change_of(block) if isinstance(block, FusedBlock) else None
        changed = f"its own forward runs, as {change} since it was converted; now " if change else ""
        if isinstance(verdict, Unsupported):
            residual.append(Finding(path, _kind(block), "left alone", changed + verdict.reason))
        elif isinstance(verdict, Fusable):
            detail = f"{changed}the shortcut can be added by the attention"
            residual.append(Finding(path, _kind(block), "could be fused", detail))
        else:
            residual.append(Finding(path, _kind(block), "fused", "the shortcut is added by the attention"))
    return ConversionReport(tuple(attention), tuple(residual))


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")


def _is_fused(module: nn.Module) -> bool:
    if isinstance(module, FusedAttention):
        return module._eca_cuda.holds_for(module)
    return isinstance(module, OWN_LAYERS)


def _blocks(model: nn.Module, attention: dict[str, tuple[nn.Module, Answer]]) -> Iterator[tuple[str, nn.Module, Any]]:
    """Path, module and what ``fuse`` says, of all that calls attention; ``None`` for what is fused."""
    fusable = {module for module, answer in attention.values() if not isinstance(answer, Unsupported)}
    for path, module in list(model.named_modules()):
        if isinstance(module, FusedBlock) and not change_of(module):
            yield path, module, None
        elif isinstance(module, FusedBlock) and is_wrapped(module):
            yield path, module, Unsupported(f"it is a {type(module).__name__}: revert before fully_shard")
        elif module not in fusable:
            names = attention_of(module, fusable.__contains__)
            if names or isinstance(module, FusedBlock):
                yield path, module, fuse(module, names)


def _attention(path: str, module: nn.Module, answer: Answer) -> Finding:
    change = module._eca_cuda.change(module) if isinstance(module, FusedAttention) else None
    changed = f"its own forward runs, as {change} since it was converted; now " if change else ""
    if isinstance(answer, Unsupported):
        return Finding(path, _kind(module), "left alone", changed + answer.reason)
    status = "fused" if _is_fused(module) else "could be fused"
    if isinstance(answer, Recipe):
        options = ", ".join(f"{name}={value!r}" for name, value in answer.options.items())
        answer = f"{answer.variant}({options})"
    return Finding(path, _kind(module), status, changed + answer)


def _kind(module: nn.Module) -> str:
    return own_class(module).__name__


def _summary(what: str, findings: tuple[Finding, ...]) -> list[str]:
    groups: dict[tuple[str, str, str], list[str]] = {}
    for f in findings:
        groups.setdefault((f.status, f.kind, f.detail), []).append(f.path or "(the model)")
    lines = [f"{what}: {len(findings)} found"]
    for (status, kind, detail), paths in groups.items():
        shown = paths if len(paths) <= 3 else [*paths[:2], "...", paths[-1]]
        lines.append(f"  {status}: {len(paths)} x {kind}, {detail}: {', '.join(shown)}")
    return lines
