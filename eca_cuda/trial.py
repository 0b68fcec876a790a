# SPDX-License-Identifier: MIT
"""Running a stranger's ``forward`` to see what it does, with nothing left of it afterwards.

``convert`` may replace a forward only by one that does the same, so anything that it does besides returning a value is
a reason to leave it alone.
"""

import copy
import pickle
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LeftAlone(Exception):
    """Why a module stays as it is."""


@contextmanager
def generators_kept() -> Iterator[None]:
    """What is drawn inside leaves the CPU's generators of torch, random and numpy as they were."""
    of_random, numpy = random.getstate(), sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(of_random)
        if numpy:
            numpy.random.set_state(of_numpy)


@contextmanager
def without_side_effects(*modules: nn.Module) -> Iterator[None]:
    """Raises LeftAlone if what ran inside changed an attribute of these modules or drew random numbers."""
    attributes, generators = [_fingerprint(vars(m)) for m in modules], _generators()
    yield
    if [_fingerprint(vars(m)) for m in modules] != attributes:
        raise LeftAlone("its forward sets attributes")
    if _generators() != generators:
        raise LeftAlone("its forward draws random numbers")


def copied(value: Any) -> Any:
    """``value`` with its own tensors, lists, dicts and sets, so that changing them does not reach the original's."""
    if isinstance(value, Tensor):
        return copy.deepcopy(value)
    if isinstance(value, dict):
        new = copy.copy(value)
        new.update({key: copied(element) for key, element in value.items()})
        return new
    if isinstance(value, list):
        return [copied(element) for element in value]
    return copy.copy(value) if isinstance(value, set) else value


def _fingerprint(value: Any) -> Any:
    """Something that compares unequal after ``value``, or what a list, dict or set of it holds, was changed."""
    if isinstance(value, Tensor):
        return id(value), value.is_inference() or value._version
    if isinstance(value, dict):
        return {key: _fingerprint(element) for key, element in value.items()}
    if isinstance(value, (list, set)):
        return [_fingerprint(element) for element in value]
    return id(value)


def _generators() -> bytes:
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    return pickle.dumps((torch.get_rng_state().tolist(), random.getstate(), of_numpy))  # arrays do not compare
