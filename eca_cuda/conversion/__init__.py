# SPDX-License-Identifier: MIT
"""Fused attention in existing models: ``convert``, ``revert`` and ``conversion_report``."""

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

from torch import nn

from .blocks import FusedBlock, Verdict, attention_of, change_of, fuse
from .fused_attention import FusedAttention
from .recipe import Recipe
from .recognition import OWN_LAYERS, Answer, Unsupported, convolutions_in_blocks, recognise_all
from .swap import STATE, Swapped, is_wrapped, own_class, restore, swap
from .watch import Conversion

__all__ = ["ConversionReport", "Finding", "conversion_report", "convert", "revert"]

Model = TypeVar("Model", bound=nn.Module)


def convert(model: Model, *, fuse_residual: bool = False, fuse_norm: bool = False) -> Model:
    """Make every module in ``model`` that computes one of the three variants run the fused kernels, in place.

    Modules are recognised by what they compute, whatever their class is called: timm's ``EcaModule`` and
    ``CecaModule``, the official ``eca_layer``, the original layers, and look-alikes. They stay the same objects with
    the same parameters, state-dict keys, hooks, mode, device and dtype, so optimizers, checkpoints and wrappers keep
    working. ``conversion_report`` lists what was converted, what was not, and why. Convert before ``torch.compile``.

    If something that a forward depends on is changed later (a submodule, its hooks or attributes), the module's own
    forward runs until the change is undone. An error during conversion leaves the model unchanged.

    Args:
        model: any module; all of its submodules are searched.
        fuse_residual: also let the attention of a residual block add the shortcut and apply the ReLU in the same pass,
            where torch.fx shows that this is safe.
        fuse_norm: also merge a batch norm and the attention after it into one call of :func:`batch_norm_eca`; with
            ``fuse_residual`` also the shortcut and the ReLU. Running statistics are updated as before.

    Returns:
        ``model``. A second call applies only the options that are new; :func:`revert` undoes all.

    Raises:
        TypeError: if ``model`` is not an ``nn.Module``.
    """
    _check_model(model)
    with ExitStack() as undo:  # undoes everything after an error
        attention = recognise_all(model)
        for module, answer in attention.values():
            if isinstance(answer, Recipe):
                _convert(module, answer, undo)
        if fuse_residual or fuse_norm:
            for _, block, verdict in list(_blocks(model, attention, fuse_residual, fuse_norm)):
                if (found := verdict.fusable) is not None:
                    undo.callback(_restore_class, block, type(block), vars(block).get(STATE))
                    if isinstance(block, FusedBlock):  # it was changed after convert, or more can be fused
                        restore(block)
                    swap(block, FusedBlock, Conversion(found), found.source)
        if not any(_is_fused(module) for module in model.modules()):
            message = "convert: no attention in the model could be fused, see conversion_report(model)"
            warnings.warn(message, stacklevel=2)
        undo.pop_all()
    return model


def _convert(module: nn.Module, recipe: Recipe, undo: ExitStack) -> None:
    undo.callback(_restore_class, module, type(module), vars(module).get(STATE))
    if not isinstance(module, FusedAttention):
        swap(module, FusedAttention, Conversion(recipe))
    elif module._eca_cuda.found is not recipe:  # it was changed after convert
        module._eca_cuda = Conversion(recipe)


def _restore_class(module: nn.Module, kind: type, state: Any) -> None:
    module.__class__ = kind
    vars(module).pop(STATE, None)
    if state is not None:
        vars(module)[STATE] = state


def revert(model: Model) -> Model:
    """Undo :func:`convert` exactly, with any options; return ``model``.

    Raises:
        RuntimeError: if ``fully_shard`` or similar changed the class of a converted module; then nothing is reverted.
    """
    _check_model(model)
    swapped = {path: module for path, module in model.named_modules() if isinstance(module, Swapped)}
    for path, module in swapped.items():
        if is_wrapped(module):
            kind = type(module).__name__
            raise RuntimeError(
                f"revert: {path or 'the model'} became a {kind} after convert; revert before fully_shard"
            )
    for module in swapped.values():
        restore(module)
    return model


@dataclass(frozen=True)
class Finding:
    """One module that is or looks like attention, or one block around attention."""

    path: str
    kind: str
    status: str  # "fused", "could be fused" or "left alone"
    detail: str  # what it computes, or why it was left alone


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` did or could do, as readable text for ``print``."""

    attention: tuple[Finding, ...]
    residual: tuple[Finding, ...]
    norm: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        lines = [*_summary("attention", self.attention), *_summary("residual blocks", self.residual)]
        return "\n".join([*lines, *_summary("batch norms before attention", self.norm)])


def conversion_report(model: nn.Module) -> ConversionReport:
    """Report what is fused in ``model``, what :func:`convert` could fuse, and what it leaves alone and why.

    ``residual`` and ``norm`` have one finding for each block that calls attention which is or could be fused.
    """
    _check_model(model)
    found = recognise_all(model)
    attention = [_attention(path, module, answer) for path, (module, answer) in found.items()]
    attention += [Finding(path, kind, "left alone", why) for path, kind, why in convolutions_in_blocks(model, found)]
    blocks = list(_blocks(model, found, True, True))
    residual = [_block(*block, "residual", "the shortcut {} added by the attention") for block in blocks]
    norm = [_block(*block, "norm", "the batch norm {} done by the attention") for block in blocks]
    return ConversionReport(tuple(attention), tuple(residual), tuple(norm))


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")


def _is_fused(module: nn.Module) -> bool:
    if isinstance(module, FusedAttention):
        return module._eca_cuda.holds_for(module)
    return isinstance(module, OWN_LAYERS)


def _blocks(
    model: nn.Module, attention: dict[str, tuple[nn.Module, Answer]], residual: bool, norm: bool
) -> Iterator[tuple[str, nn.Module, Verdict]]:
    """Yield path, module and verdict of every module that calls attention; the verdict is empty if all is fused."""
    answers = {module: answer for module, answer in attention.values() if not isinstance(answer, Unsupported)}
    for path, module in list(model.named_modules()):
        wanted, is_intact = (residual, norm), False
        if isinstance(module, FusedBlock):
            found, is_intact = module._eca_cuda.found, not change_of(module)
            wanted = residual or found.residual, norm or found.norm
            if is_intact and wanted == (found.residual, found.norm):
                yield path, module, Verdict()
                continue
            if is_wrapped(module):
                reason = f"its class became {type(module).__name__} after convert: revert before fully_shard"
                yield path, module, Verdict(None, reason, reason)
                continue
        elif module in answers:
            continue
        names = attention_of(module, answers.__contains__)
        if names or isinstance(module, FusedBlock):
            verdict = fuse(module, {name: answers[module.get_submodule(name)] for name in names}, *wanted)
            has_more = not is_intact or (verdict.residual is None and verdict.norm is None)
            yield path, module, verdict if has_more else verdict._replace(fusable=None)


def _block(path: str, block: nn.Module, verdict: Verdict, part: str, what: str) -> Finding:
    """The finding for one part of a block, "residual" or "norm"."""
    change = None
    if isinstance(block, FusedBlock):
        change = change_of(block)
        if not change and getattr(block._eca_cuda.found, part):
            return Finding(path, _kind(block), "fused", what.format("is"))
    changed = _own_forward_runs(change)
    reason = getattr(verdict, part)
    if reason is not None:
        return Finding(path, _kind(block), "left alone", changed + reason)
    return Finding(path, _kind(block), "could be fused", changed + what.format("can be"))


def _attention(path: str, module: nn.Module, answer: Answer) -> Finding:
    change = module._eca_cuda.change(module) if isinstance(module, FusedAttention) else None
    changed = _own_forward_runs(change)
    if isinstance(answer, Unsupported):
        return Finding(path, _kind(module), "left alone", changed + answer.reason)
    status = "fused" if _is_fused(module) else "could be fused"
    if isinstance(answer, Recipe):
        options = ", ".join(f"{name}={value!r}" for name, value in answer.options.items())
        answer = f"{answer.variant}({options})"
    return Finding(path, _kind(module), status, changed + answer)


def _own_forward_runs(change: Optional[str]) -> str:
    return f"its own forward runs because {change}; now " if change else ""


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
