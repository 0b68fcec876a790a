# SPDX-License-Identifier: MIT
"""Runs a user's ``forward`` to see what it does, isolated from the state of the caller."""

import copy
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily
from torch.utils._python_dispatch import _disable_current_modes

PACKAGE = __name__.partition(".")[0]  # it may run under another name than eca_cuda


class LeftAlone(Exception):
    """The reason why a module is not converted."""


def is_user_code(frame: types.FrameType) -> bool:
    """Whether the code of ``frame`` is neither torch's nor this package's."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in ("torch", PACKAGE)


@contextmanager
def isolated() -> Iterator[None]:
    """Runs its body in one thread, with gradients, and without the caller's modes and default device."""
    threads = torch.get_num_threads()
    with ExitStack() as stack:
        for _ in range(torch._C._len_torch_function_stack()):
            stack.enter_context(_pop_mode_temporarily())
        for context in (
            _disable_current_modes(),  # such as a FakeTensorMode
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            warnings.catch_warnings(),
        ):
            stack.enter_context(context)
        warnings.simplefilter("ignore")  # torch's warnings; user code that warns is refused
        stack.enter_context(_without_saved_tensors_hooks())
        torch.set_num_threads(1)  # the tensors are small: waiting for threads would take most of the time
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _without_saved_tensors_hooks() -> Iterator[None]:
    """Removes the caller's hooks. Hooks that do nothing would create cycles that the garbage collector misses."""
    c, hooks = torch._C._autograd, []
    while (top := c._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        c._pop_saved_tensors_default_hooks()
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            c._push_saved_tensors_default_hooks(pack, unpack)


AUTOCAST_DTYPE = torch.bfloat16  # the rules are the same for float16


@contextmanager
def under_autocast(device_type: Optional[str]) -> Iterator[None]:
    """Turns autocast on for a type of device, whether there is one or not. ``Witness`` reads the state for CUDA."""
    if device_type is None:
        yield
        return
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, True)
    torch.set_autocast_dtype(device_type, AUTOCAST_DTYPE)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])
        torch.clear_autocast_cache()


@contextmanager
def without_side_effects(*modules: nn.Module) -> Iterator[None]:
    """Raises LeftAlone if the body changes an attribute, buffer or parameter of these modules."""
    before = [_fingerprint((vars(m), dict(vars(type(m))))) for m in modules]
    yield
    if [_fingerprint((vars(m), dict(vars(type(m))))) for m in modules] != before:
        raise LeftAlone("its forward sets attributes")


def copied(value: Any) -> Any:
    """A copy of ``value`` with its own tensors, lists, dicts and sets."""
    if isinstance(value, nn.Parameter):
        return nn.Parameter(value.detach().clone(), value.requires_grad)
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        new = copy.copy(value)
        new.update({key: copied(element) for key, element in value.items()})
        return new
    if type(value) in (list, tuple):
        return type(value)(copied(element) for element in value)
    return copy.copy(value) if isinstance(value, set) else value


def _fingerprint(value: Any) -> Any:
    """A value that compares unequal after a change of ``value``, also inside of lists, dicts, sets and tuples."""
    if isinstance(value, Tensor):
        return id(value), value.is_inference() or value._version
    if isinstance(value, dict):
        return {key: _fingerprint(element) for key, element in value.items()}
    if isinstance(value, (list, set, tuple)):
        return [_fingerprint(element) for element in value]
    return id(value)
