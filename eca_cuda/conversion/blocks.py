# SPDX-License-Identifier: MIT
"""Blocks that call attention: the batch norm before it, and the addition and the ReLU after it, done by it.

The graph of a block's forward (``block_graph``), rewritten (``block_rewriting``), becomes as source text the block's
forward. What does not fit is left alone, with the reason.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from torch import Tensor, fx, nn

from .basis import Basis, is_disturbed
from .block_graph import traced
from .block_rewriting import around, drops, is_transparent, refuses_norm, rewrite, sequentials_before
from .fused_attention import FusedAttention
from .places import Place
from .recognition import Answer
from .swap import Source, Swapped, own_class
from .trial import LeftAlone
from .watch import Conversion

_LISTS = (nn.ModuleList, nn.ModuleDict)  # which have no forward


class Fusable(NamedTuple):
    """The forward of a block with more fused, and what that rests on."""

    # Those that are no longer called, or in another way: path, class, and whether it is converted.
    modules: tuple[tuple[str, type, bool], ...]
    weights: tuple[tuple[str, str], ...]  # parameters that the forward itself read: path of the module, name
    basis: Basis
    source: Source
    residual: bool  # whether the attention adds the shortcut
    norm: bool  # whether it normalises


class FusedBlock(Swapped):
    """A block whose attention adds the shortcut, or does what the batch norm before it did, or both.

    Its own forward runs while a drop-path is active, for arguments that are no tensors, once a module that is no longer
    called, or in another way, was replaced, reverted or given hooks, and while an attribute that it read is another.
    """

    if TYPE_CHECKING:
        _eca_cuda_forward: Any
        _eca_cuda: Conversion[Fusable]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = self._eca_cuda.found
        for value in (*args, *kwargs.values()):  # torch.fx traced tensors
            if not isinstance(value, (Tensor, fx.Proxy)):
                return super().forward(*args, **kwargs)
        for path, kind, converted in found.modules:
            module = _submodule(self, path)
            if module is None or not _is(module, kind, converted) or is_disturbed(module) or drops(module):
                return super().forward(*args, **kwargs)
        if not self._eca_cuda.holds_for(self):
            return super().forward(*args, **kwargs)
        for path, name in found.weights:
            if getattr(_submodule(self, path), name, None) is None:
                return super().forward(*args, **kwargs)
        return self._eca_cuda_forward(*args, **kwargs)


def change_of(block: FusedBlock) -> Optional[str]:
    """What is not as it was when the block was fused; a drop-path does not count, which comes and goes."""
    for path, kind, converted in block._eca_cuda.found.modules:
        module = _submodule(block, path)
        if module is None or not _is(module, kind, converted):
            return f"{path} was replaced or reverted"
        if is_disturbed(module):
            return f"{path} has hooks, or a forward of its own"
    for path, name in block._eca_cuda.found.weights:
        if getattr(_submodule(block, path), name, None) is None:
            return f"the parameter {name} is gone"
    return block._eca_cuda.change(block)


def _submodule(block: nn.Module, path: str) -> Optional[nn.Module]:
    try:
        return block.get_submodule(path)
    except AttributeError:  # gone, or a function now
        return None


def _is(module: nn.Module, kind: type, converted: bool) -> bool:
    return isinstance(module, FusedAttention) == converted and own_class(module) is kind


def attention_of(block: nn.Module, is_attention: Any) -> list[str]:
    """Paths of the attention that ``block`` calls itself, through an ``nn.Sequential`` or from a list of modules."""
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
    """What of a block could be fused, and of what was asked for, why the rest could not."""

    fusable: Optional[Fusable] = None
    residual: Optional[str] = None
    norm: Optional[str] = None


def fuse(block: nn.Module, attention: Mapping[str, Answer], residual: bool, norm: bool) -> Verdict:
    """Whether all attention at these paths could add the shortcut, normalise, or both, in the forward of ``block``."""
    all_of_it = _fused(block, attention, residual, norm)
    if isinstance(all_of_it, Fusable):
        return Verdict(all_of_it)
    if not (residual and norm):
        return Verdict(None, all_of_it if residual else None, all_of_it if norm else None)
    with_residual = _fused(block, attention, True, False)
    if isinstance(with_residual, Fusable):
        return Verdict(with_residual, norm=all_of_it)
    with_norm = _fused(block, attention, False, True)
    if isinstance(with_norm, Fusable):
        return Verdict(with_norm, residual=with_residual)
    return Verdict(None, with_residual, with_norm)


def _fused(block: nn.Module, attention: Mapping[str, Answer], residual: bool, norm: bool) -> Union[Fusable, str]:
    """The forward of ``block`` with the attention at these paths fused so, or why there is none."""
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
            raise LeftAlone(f"its forward reads what is in {path}")
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
    except Exception as error:  # whatever a forward that torch.fx cannot follow may raise
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        return f"torch.fx cannot follow its forward: {first_line}"
