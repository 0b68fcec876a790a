# SPDX-License-Identifier: MIT
"""Modules that differ from ECA in any way that a caller could see are left alone, with a true reason."""

import random
import sys
import threading
import time

import disguises
import pytest
import torch
from disguises import BESIDES, DECISIONS, ECA, GRADIENTS, NUMBERS, OF_OTHER_CLASSES, SharesItsCopy

from eca_cuda import conversion_report, convert
from eca_cuda.conversion import recognition
from eca_cuda.conversion.fused_attention import FusedAttention

CASES = {name: (lambda change=change: ECA(change), reason) for name, (change, reason) in (NUMBERS | GRADIENTS).items()}
CASES |= {name: (lambda change=change: ECA(change), reason) for name, (change, reason) in (DECISIONS | BESIDES).items()}
CASES |= OF_OTHER_CLASSES
pytestmark = pytest.mark.filterwarnings("ignore:convert. no attention")


def state() -> tuple:
    """The global state that a forward could change."""
    generators = torch.get_rng_state().tolist(), random.getstate()
    settings = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    return (
        generators,
        settings,
        sys.getprofile(),
        sys.stdout,
        threading.active_count(),
        disguises.SETTINGS.copy(),
        disguises.CALLS,
    )


def test_plain_eca_is_converted():
    assert isinstance(convert(ECA()), FusedAttention)


@pytest.mark.parametrize("make, reason", CASES.values(), ids=CASES)
def test_a_module_that_differs_anywhere_is_left_alone(make, reason, capfd):
    module = make()
    before, weights, kind = state(), module.conv.weight.detach().clone(), type(module)
    attributes = dict(vars(module))
    assert type(convert(module)) is kind
    (finding,) = conversion_report(module).attention
    assert finding.status == "left alone" and reason in finding.detail
    assert state() == before and torch.equal(module.conv.weight, weights) and vars(module) == attributes
    assert capfd.readouterr() == ("", "")


def test_a_copy_shares_nothing_with_the_module():
    """Its conv returns itself from deepcopy, so that a trial could set random weights in the module."""
    module = SharesItsCopy()
    before = module.conv.weight.detach().clone()
    conversion_report(module)
    assert isinstance(convert(module), FusedAttention) and torch.equal(module.conv.weight, before)


def test_a_trial_takes_less_than_a_tenth_of_a_second(monkeypatch):
    """Processor time, best of three; the second module of a class needs no trial."""
    trials, original = [], recognition.compare
    monkeypatch.setattr(recognition, "compare", lambda *args: trials.append(args) or original(*args))
    model, times = torch.nn.Sequential(*(ECA() for _ in range(5))), []
    for _ in range(3):
        start = time.process_time()
        conversion_report(model)
        times.append(time.process_time() - start)
    assert min(times) < 0.1 and len(trials) == 3
    model[3].pool = torch.nn.AdaptiveMaxPool2d(1)
    assert [f.status for f in conversion_report(model).attention].count("could be fused") == 4
