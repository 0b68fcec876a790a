# SPDX-License-Identifier: MIT
"""Blocks that call attention, and the forward in which one call also does the batch norm, the addition and the ReLU.

The graph of a block's forward (``block_graph``) is rewritten (``block_rewriting``) and compiled from its source text. A
block for which that is not possible is left alone, with the reason.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from torch import Tensor, fx, nn

from .basis import Basis, has_modified_call
from .block_graph import traced
from .block_rewriting import around, drops, is_transparent, refuses_norm, rewrite, sequentials_before
from .fused_attention import FusedAttention
from .places import Place
from .recognition import Answer
from .swap import Source, Swapped, own_class
from .trial import LeftAlone
from .watch import Conversion

_LISTS = (nn.ModuleList, nn.ModuleDict)  # they have no forward


class Fusable(NamedTuple):
    """The rewritten forward of a block, and what it depends on."""

    # Modules that are called differently or no longer: path, class, and whether the module is converted.
    modules: tuple[tuple[str, type, bool], ...]
    weights: tuple[tuple[str, str], ...]  # parameters that the forward reads: path of the module, name
    basis: Basis
    source: Source
    residual: bool  # whether the attention adds the shortcut
    norm: bool  # whether the attention does the batch norm


class FusedBlock(Swapped):
    """A block whose attention adds the shortcut, or does the batch norm before it, or both.

    Its own forward runs while a drop-path is active, for arguments that are not tensors, and while anything differs
    that the rewritten forward depends on.
    """

    if TYPE_CHECKING:
        _eca_cuda_forward: Any
        _eca_cuda: Conversion[Fusable]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = self._eca_cuda.found
        for value in (*args, *kwargs.values()):  # the trace was made with tensors
            if not isinstance(value, (Tensor, fx.Proxy)):
                return super().forward(*args, **kwargs)
        for path, kind, converted in found.modules:
            module = _submodule(self, path)
            if module is None or not _is(module, kind, converted) or has_modified_call(module) or drops(module):
                return super().forward(*args, **kwargs)
        if not self._eca_cuda.holds_for(self):
            return super().forward(*args, **kwargs)
        for path, name in found.weights:
            if getattr(_submodule(self, path), name, None) is None:
                return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


def change_of(block: FusedBlock) -> Optional[str]:
    """What changed since the block was fused, or None. An active drop-path does not count as a change."""
    for path, kind, converted in block._eca_cuda.found.modules:
        module = _submodule(block, path)
        if module is None or not _is(module, kind, converted):
            return f"{path} was replaced or reverted"
        if has_modified_call(module):
            return f"{path} has hooks or its forward was replaced"
    for path, name in block._eca_cuda.found.weights:
        if getattr(_submodule(block, path), name, None) is None:
            return f"the parameter {name} is missing"
    return block._eca_cuda.change(block)


def _submodule(block: nn.Module, path: str) -> Optional[nn.Module]:
    try:
        return block.get_submodule(path)
    except AttributeError:  # missing, or not a module
        return None


def _is(module: nn.Module, kind: type, converted: bool) -> bool:
    return isinstance(module, FusedAttention) == converted and own_class(module) is kind


def attention_of(block: nn.Module, is_attention: Any) -> list[str]:
    """Paths of the attention that ``block`` calls, directly, through an ``nn.Sequential`` or from a list of modules."""
    if is_transparent(block) or type(block) in _LISTS:
        return []
    return _attention_in(block, is_attention)


def _attention_in(module: nn.Module, is_attention: Any) -> list[str]:
    found = []
    for name, child in module.named_children():
        if is_attention(child):
            found.append(name)
        elif is_transparent(child) or type(child) in _LISTS:
            found += [f"{name}.{path}" for path in _attention_in(child, is_attention)]
    return found


class Verdict(NamedTuple):
    """The parts of a block that could be fused, and for the requested ones that could not, the reason."""

    fusable: Optional[Fusable] = None
    residual: Optional[str] = None
    norm: Optional[str] = None


def fuse(block: nn.Module, attention: Mapping[str, Answer], residual: bool, norm: bool) -> Verdict:
    """Fuse as much of what was requested as possible for all attention at these paths in the forward of ``block``."""
    requested = _fused(block, attention, residual, norm)
    if isinstance(requested, Fusable):
        return Verdict(requested)
    if not (residual and norm):
        return Verdict(None, requested if residual else None, requested if norm else None)
    with_residual = _fused(block, attention, True, False)
    if isinstance(with_residual, Fusable):
        return Verdict(with_residual, norm=requested)
    with_norm = _fused(block, attention, False, True)
    if isinstance(with_norm, Fusable):
        return Verdict(with_norm, residual=with_residual)
    return Verdict(None, with_residual, with_norm)


def _fused(block: nn.Module, attention: Mapping[str, Answer], residual: bool, norm: bool) -> Union[Fusable, str]:
    """The forward of ``block`` with the attention at these paths fused, or the reason why there is none."""
    if not attention:
        return "it calls no attention that could be fused"
    try:
        if norm:
            for path, answer in attention.items():
                if refusal := refuses_norm(path, block.get_submodule(path), answer):
                    raise LeftAlone(refusal)
        inside = {outer for path in attention for outer in around(path)}
        graph, notes = traced(block, inside)
        while norm and (before := sequentials_before(graph, block, attention) - inside):
            inside |= before
            graph, notes = traced(block, inside)
        rewritten = [rewrite(graph, block, path, residual, norm) for path in attention]
        norms = [one.norm for one in rewritten if one.norm]
        for path in notes.paths().intersection([*attention, *norms]):
            raise LeftAlone(f"its forward does more with {path} than call it")
        called = [path for one in rewritten for path in one.called]
        graph.lint()
        code = graph.python_code("self")
        named = [(path, block.get_submodule(path)) for path in called]
        modules = tuple((path, own_class(m), isinstance(m, FusedAttention)) for path, m in named)
        functions = {Place(kind, "forward") for _, kind, converted in modules if not converted}
        earlier = {path for one in rewritten for path in one.earlier}
        for path in earlier:
            if hasattr(block.get_submodule(path), "inplace"):
                notes.names.setdefault(path, set()).add("inplace")
        basis = notes.basis(block, sorted(notes.paths().union(earlier, norms[1:])))
        basis = replace(basis, functions=tuple({*basis.functions, *functions}), apart=tuple(norms))
        source = Source.of(code.src.strip(), code.globals)
        return Fusable(modules, tuple(sorted(notes.weights)), basis, source, residual, norm)
    except LeftAlone as reason:
        return str(reason)
    except Exception as error:  # a forward that torch.fx cannot trace may raise anything
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return f"torch.fx cannot trace its forward: {first_line}"
