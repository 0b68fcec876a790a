# SPDX-License-Identifier: MIT
"""``enable()``: compiled models use the fused operator wherever they compute ECA, without a change of their code.

A pass over the graph that Dynamo hands to Inductor rewrites

    pool over all positions -> convolution across channels -> (hard) sigmoid -> * x   (-> + residual (-> relu))

of maps or tokens into one call of ``eca_cuda.eca``, whatever reshapes are in between; with a batch norm before it, into
one call of ``eca_cuda.batch_norm_eca``. Anything that does not match exactly is left alone. Off by default.
"""

from pathlib import Path
from typing import Any, Optional

import torch._inductor.config as config
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from .. import autograd, compiling, norm
from ..options import options
from . import eca_graph, norm_graph

__all__ = ["disable", "enable"]


def enable() -> None:
    """Rewrite ECA in every model that Inductor compiles from now on; passes that are already set run first.

    ``torch._dynamo.utils.counters["inductor"]["eca_cuda"]`` counts the layers that were rewritten, and
    ``["eca_cuda_norm"]`` those of them that include a batch norm.
    """
    if not isinstance(config.pre_grad_custom_pass, _Pass):
        config.pre_grad_custom_pass = _Pass(config.pre_grad_custom_pass)


def disable() -> None:
    """Undo ``enable()`` for models that are compiled from now on."""
    if isinstance(config.pre_grad_custom_pass, _Pass):
        config.pre_grad_custom_pass = config.pre_grad_custom_pass.before


class _Pass(CustomGraphPass):
    """Runs the passes that were set before, then ``rewrite``."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.others = list(before) if isinstance(before, (list, tuple)) else [before] if before else []

    def __call__(self, graph: Graph) -> None:
        for other in self.others:
            other(graph)
        rewrite(graph)

    def uuid(self) -> Optional[Any]:
        """The key for Inductor's cache; None, which disables caching, if another pass has none."""
        others = [other.uuid() if isinstance(other, CustomGraphPass) else None for other in self.others]
        # All files of the package, as a rewritten layer is traced through autograd.py and more.
        own = get_hash_for_files(tuple(sorted(map(str, Path(__file__).parents[1].rglob("*.py"))))), compiling.mode()
        return None if None in others else (*own, *others)


def traced_eca(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    *,
    padding_mode: str,
    gate: str,
    channels_dim: int,
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
) -> Tensor:
    """``eca`` for tracing by AOTAutograd, where ``torch.compiler.is_compiling()`` is true only from torch 2.13 on."""
    moved = None if residual is None else residual.movedim(channels_dim, 1)
    chosen = options(padding_mode, gate, activation)
    y = autograd.apply_carefully("eca", x.movedim(channels_dim, 1), (weight, bias), moved, chosen, True)
    return y.movedim(1, channels_dim)


def traced_batch_norm_eca(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    *,
    norm_weight: Optional[Tensor],
    norm_bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    training: bool,
    momentum: float,
    eps: float,
    padding_mode: str,
    gate: str,
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
) -> Tensor:
    """``batch_norm_eca`` for tracing by AOTAutograd."""
    of_norm = norm.Norm(norm_weight, norm_bias, running_mean, running_var, training, momentum, eps)
    return norm.apply_traced(x, (weight, bias), of_norm, residual, options(padding_mode, gate, activation))


def rewrite(graph: Graph) -> None:
    """Replace every ECA in ``graph``, and the batch norms that go with them."""
    for node in list(graph.nodes):
        plain = eca_graph.find(node)
        if plain is None:
            continue
        joined = norm_graph.with_norm(plain)
        match, function = (plain, traced_eca) if joined is None else (joined, traced_batch_norm_eca)
        last = match.nodes[0]
        with graph.inserting_before(last):
            fused = graph.call_function(function, (match.x, match.weight, match.bias), match.options)
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)
        for old in plain.nodes:
            if not old.users:  # views of x may have other users
                graph.erase_node(old)
        counters["inductor"]["eca_cuda"] += 1
        if joined is not None:
            plain.x.replace_all_uses_with(joined.x)  # the remaining uses only ask for the size
            graph.erase_node(plain.x)
            counters["inductor"]["eca_cuda_norm"] += 1
