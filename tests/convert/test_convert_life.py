# SPDX-License-Identifier: MIT
"""Lifetime, copies, pickles and interruptions of what ``convert`` makes."""

import copy
import cProfile
import functools
import gc
import pickle
import sys
import weakref

import pytest
import torch
from torch import Tensor, nn

from eca_cuda import conversion, conversion_report, convert, revert
from eca_cuda.conversion.blocks import FusedBlock
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.conversion.swap import derived
from eca_cuda.testing import make_x

X = make_x((2, 16, 5, 6))


class ECA(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.Sigmoid()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def logits(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x).squeeze(-1).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)

    def gate(self, x: Tensor) -> Tensor:
        return self.act(self.logits(x))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.eca = nn.Conv2d(16, 16, 1), ECA()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.eca(self.conv(x)) + x)


def decorated(function):
    @functools.wraps(function)
    def wrapper(self, x):
        return function(self, x)

    return wrapper


class Decorated(ECA):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def factory(gain: float) -> type[nn.Module]:
    class Made(ECA):
        @decorated
        def forward(self, x: Tensor) -> Tensor:
            return x * self.act(self.logits(x) * gain)

    return Made


class LeftAlone(ECA):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-1, 1)


@pytest.mark.filterwarnings("ignore:convert. no attention")
@pytest.mark.parametrize("make", [ECA, Decorated, Block, LeftAlone])
def test_a_module_is_freed_at_once(make):
    """Without the garbage collector: no cycle leads to it, not even through exceptions of a trial."""
    gc.collect()
    gc.disable()
    try:
        m = make()
        convert(m, fuse_residual=True)
        m(X)
        conversion_report(m)
        assert isinstance(m, (FusedAttention, FusedBlock)) == (make is not LeftAlone)
        references = [weakref.ref(part) for part in m.modules()]
        del m
        assert [r() for r in references] == [None] * len(references)
    finally:
        gc.enable()


def test_no_tensor_of_a_trial_stays():
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    conversion_report(ECA())
    before = tensors()
    conversion_report(ECA())
    assert tensors() <= before  # other tensors may have been freed


def test_hooks_for_saved_tensors_do_not_see_a_trial_and_are_restored():
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        convert(ECA())
        assert not seen
        torch.ones(1, requires_grad=True).exp()
        assert len(seen) == 1


@pytest.mark.parametrize("make", [ECA, Block])
def test_an_instance_made_by_its_class_runs_its_own_forward(make):
    m = convert(make(), fuse_residual=True)
    other, own = type(m)(), type(revert(copy.deepcopy(m)))()
    own.load_state_dict(other.state_dict())
    assert torch.equal(other(X), own(X)) and type(own) is make
    report = conversion_report(other)
    findings = report.attention if make is ECA else report.residual
    assert "it was made by the class of a converted module" in findings[0].detail
    assert torch.equal(pickle.loads(pickle.dumps(other))(X), own(X))
    torch.testing.assert_close(convert(other, fuse_residual=True)(X), own(X))
    assert type(revert(other)) is make and [*vars(other)] == [*vars(own)]


def test_a_replica_for_data_parallel_watches_its_own_modules():
    m = convert(ECA())
    m(X)
    replica = m._replicate_for_data_parallel()
    replica._modules = {name: child._replicate_for_data_parallel() for name, child in m._modules.items()}
    replica.conv._parameters = dict(m.conv._parameters)
    assert torch.equal(replica(X), m(X))
    replica.act = nn.Tanh()
    assert not torch.allclose(replica(X), m(X))


@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_a_decorated_forward_of_a_factory(gain):
    classes = [factory(1.0), factory(2.0)]
    model = nn.Sequential(*(kind() for kind in classes))
    expected = [m(X) for m in model]
    convert(model)
    assert [type(m).__name__ for m in model] == ["FusedMade", "Made"]
    torch.testing.assert_close([m(X) for m in model], expected)


def test_a_function_that_is_wrapped_is_watched(monkeypatch):
    m = convert(Decorated())
    assert isinstance(m, FusedAttention)
    monkeypatch.setattr(Decorated.forward.__wrapped__, "__code__", (lambda self, x: 3 * x).__code__)
    assert torch.equal(m(X), 3 * X) and "forward was changed" in conversion_report(m).attention[0].detail


@pytest.mark.parametrize("make", [ECA, Decorated])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_pickles_stay_fused(make, copied):
    m = convert(make())
    other = copied(m)
    assert torch.equal(other(X), m(X)) and conversion_report(other).attention[0].status == "fused"


@pytest.mark.parametrize("changed", ["forward", "logits"])
def test_a_pickle_runs_the_code_of_the_process_that_loads_it(changed, monkeypatch):
    plain = ECA()
    pickled = pickle.dumps(convert(copy.deepcopy(plain)))
    monkeypatch.setattr(ECA, changed, lambda self, x: 3 * x)
    m = pickle.loads(pickled)
    assert isinstance(m, FusedAttention) and torch.equal(m(X), plain(X))
    assert conversion_report(m).attention[0].status == "left alone"
    assert f"{changed}" in conversion_report(m).attention[0].detail


def test_a_pickle_made_after_a_patch_runs_the_patch(monkeypatch):
    m = convert(ECA())
    monkeypatch.setattr(ECA, "forward", lambda self, x: 3 * x)
    assert torch.equal(pickle.loads(pickle.dumps(m))(X), 3 * X)


def test_a_profiler_keeps_running():
    def before() -> None:
        pass

    def after() -> None:
        pass

    with cProfile.Profile() as profile:
        before()
        convert(ECA())
        after()
    assert sys.getprofile() is None
    names = {getattr(entry.code, "co_name", "") for entry in profile.getstats()}
    assert {"before", "after"} <= names


def test_a_profile_function_stays_set():
    seen = []

    def profile(frame, event, argument):
        seen.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        convert(ECA())
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)


def interrupted(module: nn.Module, mixin: type, *_: object) -> None:
    """``swap``, interrupted halfway."""
    module.__class__ = derived(mixin, type(module))
    raise KeyboardInterrupt


def test_a_module_works_after_an_interrupted_swap(monkeypatch):
    m = ECA()
    expected = m(X)
    with pytest.raises(KeyboardInterrupt):
        interrupted(m, FusedAttention)
    assert isinstance(m, FusedAttention) and torch.equal(m(X), expected)
    assert conversion_report(m).attention[0].status == "could be fused"
    assert type(revert(m)) is ECA and "_eca_cuda" not in vars(m)
    monkeypatch.setattr(conversion, "swap", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(nn.Sequential(m))
    assert type(m) is ECA and "_eca_cuda" not in vars(m) and torch.equal(m(X), expected)


def test_a_module_works_after_an_interrupted_restore():
    m = ECA()
    expected = m(X)
    convert(m)
    del m.__dict__["_eca_cuda"]  # the first of its two steps
    assert torch.equal(m(X), expected)
    assert type(revert(m)) is ECA
