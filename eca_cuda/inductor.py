# SPDX-License-Identifier: MIT
"""``enable()``: compiled models use the fused operator wherever they compute ECA, with no change to their code.

A pass over the graph that Dynamo hands to Inductor rewrites

    pool over all positions -> convolution across channels -> (hard) sigmoid -> * x   (-> + residual (-> relu))

of maps or tokens into one call of ``eca_cuda.eca``, however the shapes are juggled in between. What it does not know
for certain to be that stays as it was. Off by default.
"""

from pathlib import Path
from typing import Any, Optional

import torch._inductor.config as config
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph

from . import autograd, compiling, eca_graph, ops

__all__ = ["disable", "enable"]


def enable() -> None:
    """Rewrite ECA in every model that Inductor compiles from now on; passes that are set already run first.

    ``torch._dynamo.utils.counters["inductor"]["eca_cuda"]`` counts the layers that were rewritten.
    """
    if not isinstance(config.pre_grad_custom_pass, _Pass):
        config.pre_grad_custom_pass = _Pass(config.pre_grad_custom_pass)


def disable() -> None:
    """Undo ``enable()`` for models that are compiled from now on."""
    if isinstance(config.pre_grad_custom_pass, _Pass):
        config.pre_grad_custom_pass = config.pre_grad_custom_pass.before


class _Pass(CustomGraphPass):
    """The rewriting, after the passes that were there before."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.others = list(before) if isinstance(before, (list, tuple)) else [before] if before else []

    def __call__(self, graph: Graph) -> None:
        for other in self.others:
            other(graph)
        rewrite(graph)

    def uuid(self) -> Optional[Any]:
        """The key in Inductor's cache: None, which is no caching, where one of the others has none."""
        others = [other.uuid() if isinstance(other, CustomGraphPass) else None for other in self.others]
        # All files: what a rewritten layer is traced to comes from autograd.py and from what that calls.
        own = get_hash_for_files(tuple(sorted(map(str, Path(__file__).parent.glob("*.py"))))), compiling.mode()
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
    """``eca`` where AOTAutograd traces it: ``torch.compiler.is_compiling()`` is true there from torch 2.13 on only."""
    flags = ops.FLAGS[padding_mode, gate, activation]
    moved = None if residual is None else residual.movedim(channels_dim, 1)
    y = autograd.apply_traced("eca", x.movedim(channels_dim, 1), (weight, bias), moved, flags)
    return y.movedim(1, channels_dim)


def rewrite(graph: Graph) -> None:
    """Replace every ECA in ``graph``."""
    for node in list(graph.nodes):
        match = eca_graph.find(node)
        if match is None:
            continue
        last = match.nodes[0]
        with graph.inserting_before(last):
            fused = graph.call_function(traced_eca, (match.x, match.weight, match.bias), match.options)
        fused.meta = dict(last.meta)
        last.replace_all_uses_with(fused)
        for old in match.nodes:
            if not old.users:  # views of x may have others
                graph.erase_node(old)
        counters["inductor"]["eca_cuda"] += 1
