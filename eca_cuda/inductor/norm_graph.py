# SPDX-License-Identifier: MIT
"""Finds the batch norm before an ECA found by ``eca_graph``, if the two can become one call.

That call takes the place of the ECA's last call, so running statistics are updated later than before.
"""

import math
from dataclasses import replace
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, is_concrete_float

from .. import checks
from .eca_graph import Match, NoMatch, arguments, is_movable, is_valid, require, traced, value_of

_OPTIONS = ("training", "momentum", "eps")
# The functions of batch norm, with the names of their arguments.
_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", *_OPTIONS),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", *_OPTIONS, "cudnn_enabled"),
}


def with_norm(match: Match) -> Optional[Match]:
    """``match`` extended by the batch norm that produces its x; the norm's arguments become options."""
    norm = match.x
    if norm.target not in _NORMS or match.options["channels_dim"] != 1:
        return None
    try:
        given = arguments(norm, *_NORMS[norm.target], weight=None, bias=None, training=False, momentum=0.1, eps=1e-5)
        joined = replace(match, nodes=(*match.nodes, norm), x=given["input"])
        tensors = {name: given[name] for name in ("weight", "bias", "running_mean", "running_var")}
        weight, bias, *running = (None if t is None else value_of(t) for t in tensors.values())
        require(isinstance(given["training"], bool) and value_of(joined.x).dtype == value_of(norm).dtype)
        require(is_valid(joined) and _has_no_other_users(joined) and is_movable(joined))
        checks.check_norm(value_of(joined.x), weight, bias, running[0], running[1], given["training"])
        require(not _touches(joined, [t for t in running if t is not None]))
        numbers = {name: _number(given[name]) for name in ("momentum", "eps")}
    except (NoMatch, TypeError, ValueError, NotImplementedError, GuardOnDataDependentSymNode):
        return None
    named = {name if "running" in name else f"norm_{name}": t for name, t in tensors.items()}
    options = {name: value for name, value in match.options.items() if name != "channels_dim"}
    return replace(joined, options=options | named | {"training": given["training"]} | numbers)


def _has_no_other_users(match: Match) -> bool:
    """Whether only this ECA uses the output of the norm, and not as its residual."""
    norm = match.nodes[-1]
    users = [user for node in match.nodes[1:] for user in node.users if not (node is norm and _asks_for_size(user))]
    return all(user in match.nodes for user in users) and match.options.get("residual") not in match.nodes


def _asks_for_size(user: Node) -> bool:
    """Whether the call only asks for a size, which the norm's x has too."""
    return user.op == "call_method" and user.target == "size"


def _touches(match: Match, statistics: list[Tensor]) -> bool:
    """Whether any node after the norm, up to the fused call, uses running statistics, possibly as another view."""
    memory = {t.untyped_storage()._cdata for t in statistics}
    node = match.nodes[-1]
    while memory and node is not match.nodes[0]:
        node = node.next
        values = [traced(given) for given in node.all_input_nodes]
        if any(isinstance(value, Tensor) and value.untyped_storage()._cdata in memory for value in values):
            return True
    return False


def _number(value: Any) -> float:
    """A number known to Dynamo. With ``dynamic=True`` it may be an input that batch norm turned into a constant."""
    value = traced(value)
    if isinstance(value, torch.SymFloat) and is_concrete_float(value):
        value = float(value)
    require(type(value) in (int, float) and math.isfinite(value))
    return float(value)
