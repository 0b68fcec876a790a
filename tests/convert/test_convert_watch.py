# SPDX-License-Identifier: MIT
"""Changes to converted attention after ``convert`` take effect: its own forward runs, and the report says why."""

import copy
import pickle
from collections.abc import Callable

import disguises
import pytest
import torch
from disguises import ECA, WithAttribute
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import eca_cuda
from eca_cuda import conversion_report, convert, revert
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x


def annealed() -> ECA:
    return WithAttribute(1.0, lambda m, x, gate: x * m.act(m.logits(x) / m.own))


def settings_of_a_dict() -> ECA:
    return WithAttribute({"tau": [1.0]}, lambda m, x, gate: x * m.act(m.logits(x) / m.own["tau"][0]))


class OfItsClass(ECA):
    tau = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.logits(x) / self.tau)


class OfAGlobal(ECA):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.logits(x) / disguises.TEMPERATURE if False else self.logits(x) / TAU)


TAU = 1.0


class OfAProperty(ECA):
    def __init__(self):
        super().__init__()
        self._tau = 1.0

    @property
    def tau(self) -> float:
        return self._tau

    def forward(self, x: Tensor) -> Tensor:
        return x * self.act(self.logits(x) / self.tau)


class InASequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.tail = nn.Sequential(nn.Identity(), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.tail(self.conv(x.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)


class Growing(ECA):
    """Has places for later additions: a list of modules, a child, a parameter, a buffer, a list of parameters."""

    def __init__(self):
        super().__init__()
        self.post, self.gains, self.child = nn.ModuleList(), nn.ParameterList(), nn.Identity()
        self.child = None
        self.register_parameter("gain", None)
        self.register_buffer("mask", None)
        self.same = self.act

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.same(self.logits(x))
        for m in self.post:
            y = m(y)
        for p in self.gains:
            y = y * p
        if self.child is not None:
            y = self.child(y)
        for factor in (self.gain, self.mask):
            if factor is not None:
                y = y * factor
        return y


class Tied(nn.Module):
    """A convolution and an activation with two names each; the forward uses the second."""

    def __init__(self):
        super().__init__()
        self.conv = self.again = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.gates = nn.ModuleList([nn.Sequential(nn.Sigmoid())])
        self.gates.append(self.gates[0])

    def forward(self, x: Tensor) -> Tensor:
        g = self.again(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return x * self.gates[1](g)


def emptied(m: nn.Module) -> None:
    """Removes all hooks by replacing the dict, then adds one."""
    m.act._forward_hooks = type(m.act._forward_hooks)()
    m(make_x((2, 16, 5, 6), torch.float64))
    m.act.register_forward_hook(lambda m, x, y: 2 * y)


def regrown(m: nn.Module) -> None:
    m.post.append(nn.Tanh())
    del m.post[0]
    m(make_x((2, 16, 5, 6), torch.float64))
    m.post.append(nn.Tanh())


class LowRank(nn.Module):
    """An adapter around a layer, like PEFT's, with a weight attribute."""

    def __init__(self, layer: nn.Conv1d):
        super().__init__()
        self.layer, self.extra = layer, nn.Conv1d(1, 1, 1)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    bias = None

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.extra(x)


class Doubling(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def setting(path: str, value: object) -> Callable[[nn.Module], None]:
    *outer, name = path.split(".")
    return lambda m: setattr(m.get_submodule(".".join(outer)), name, value)


def replacing(path: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda m: m.set_submodule(path, make(m.get_submodule(path)))


def hooking(path: str, kind: str, hook: Callable) -> Callable[[nn.Module], None]:
    return lambda m: getattr(m.get_submodule(path), f"register_{kind}")(hook)


# name -> (module, change, part of the report afterwards)
CHANGES = {
    "another activation": (ECA, replacing("act", lambda _: nn.Hardsigmoid()), "act is a Hardsigmoid, not a Sigmoid"),
    "another pooling": (ECA, replacing("pool", lambda _: nn.AdaptiveMaxPool2d(1)), "pool is a AdaptiveMaxPool2d"),
    "another convolution": (
        ECA,
        replacing("conv", lambda _: nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)),
        "conv.dilation is (2,), no longer (1,)",
    ),
    "an attribute of the convolution": (ECA, setting("conv.padding_mode", "reflect"), "conv.padding_mode is 'reflect'"),
    "an attribute of the pooling": (
        ECA,
        setting("pool.output_size", (1, 1)),
        "pool.output_size is (1, 1)",
    ),
    "an adapter": (ECA, replacing("conv", LowRank), "conv is a LowRank, not a Conv1d"),
    "a parametrization": (
        ECA,
        lambda m: parametrize.register_parametrization(m.conv, "weight", Doubling()),
        "conv is a ParametrizedConv1d, not a Conv1d",
    ),
    "weight norm": (ECA, lambda m: parametrizations.weight_norm(m.conv), ""),
    "a pre-hook inside": (ECA, hooking("conv", "forward_pre_hook", lambda _, x: (0 * x[0],)), "conv has hooks"),
    "a hook inside": (ECA, hooking("act", "forward_hook", lambda m, x, y: 2 * y), "act has hooks"),
    "a backward hook inside": (
        ECA,
        hooking("act", "full_backward_hook", lambda m, x, y: (2 * x[0],)),
        "act has hooks",
    ),
    "a forward on the instance": (ECA, setting("act.forward", torch.tanh), "the forward of act was replaced"),
    "a method on the instance": (ECA, setting("gate", lambda x: x), "gate was replaced"),
    "a temperature": (annealed, setting("own", 5.0), "own is 5.0, no longer 1.0"),
    "a temperature in a dict": (
        settings_of_a_dict,
        lambda m: m.own["tau"].__setitem__(0, 5.0),
        "own is {'tau': [5.0]}",
    ),
    "a temperature of the class": (OfItsClass, setting("tau", 5.0), "tau is 5.0"),
    "a temperature behind a property": (OfAProperty, setting("_tau", 5.0), "_tau is 5.0"),
    "a longer sequential": (InASequential, lambda m: m.tail.append(nn.Tanh()), "tail has other submodules"),
    "another order": (
        InASequential,
        lambda m: setattr(m.tail, "_modules", {"0": nn.Softsign(), "1": nn.Sigmoid()}),
        "tail.0 is a Softsign",
    ),
    "an empty list grows": (Growing, lambda m: m.post.append(nn.Tanh()), "post has other submodules"),
    "an empty list grows again": (Growing, regrown, "post has other submodules"),
    "a missing child is set": (Growing, setting("child", nn.Tanh()), "it has other submodules"),
    "a missing child is gone": (
        Growing,
        lambda m: delattr(m, "child") or setattr(m, "child", nn.Tanh()),
        "it has other",
    ),
    "a parameter is set": (
        Growing,
        lambda m: setattr(m, "gain", nn.Parameter(torch.full((1,), 3.0))),
        "gain was replaced",
    ),
    "a buffer is set": (Growing, setting("mask", torch.full((1,), 3.0)), "mask was replaced"),
    "a list of parameters grows": (Growing, lambda m: m.gains.append(torch.full((1,), 3.0)), "gains._size is 1"),
    "an alias is replaced": (Growing, setting("same", nn.Sigmoid()), "same is no longer the same as act"),
    "a tie is broken": (Tied, replacing("again", copy.deepcopy), "again is no longer the same as conv"),
    "a tie inside is broken": (
        Tied,
        lambda m: m.gates.__setitem__(1, nn.Sequential(nn.Tanh())),
        "gates.1 is no longer the same as gates.0",
    ),
    "hooks in another dict": (ECA, emptied, "act has hooks"),
    "a module gone": (
        ECA,
        lambda m: delattr(m, "act") or setattr(m, "act", torch.tanh),
        "it has other submodules",
    ),
}


def results(m: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    parameters = [p for p in m.parameters() if p.requires_grad]
    return [y := m(x), *torch.autograd.grad(y.square().sum(), [x, *parameters], allow_unused=True)]


@pytest.mark.parametrize("make, change, reason", CHANGES.values(), ids=CHANGES)
def test_a_later_change_takes_effect(make, change, reason):
    torch.manual_seed(0)
    plain, x = make().double(), make_x((2, 16, 5, 6), torch.float64)
    converted = convert(copy.deepcopy(plain))
    assert isinstance(converted, FusedAttention)
    torch.testing.assert_close(results(converted, x), results(plain, x))
    for m in (plain, converted):
        torch.manual_seed(1)
        change(m)
        m.double()
    torch.testing.assert_close(results(converted, x), results(plain, x), rtol=0, atol=0)
    (finding,) = conversion_report(converted).attention
    assert finding.status != "fused" and "its own forward runs" in finding.detail and reason in finding.detail
    revert(converted)
    torch.testing.assert_close(results(converted, x), results(plain, x), rtol=0, atol=0)


def test_a_module_is_fused_again_after_a_change_is_undone():
    m = convert(annealed())
    m.own = 2.0
    assert conversion_report(m).attention[0].status == "left alone"
    m.own = 1.0
    assert conversion_report(m).attention[0].status == "fused"
    handle = m.act.register_forward_hook(lambda *_: None)
    assert conversion_report(m).attention[0].status == "left alone"
    handle.remove()
    assert conversion_report(m).attention[0].status == "fused"


def test_replacing_a_submodule_by_an_equal_one_keeps_it_fused():
    m, x = convert(ECA()), make_x((2, 16, 5, 6))
    m.conv, m.act = nn.Conv1d(1, 1, 3, padding=1, bias=False), nn.Sigmoid()
    assert conversion_report(m).attention[0].status == "fused"
    torch.testing.assert_close(m(x), eca_cuda.eca(x, m.conv.weight))


def test_converting_again_tries_the_module_again():
    m = convert(ECA())
    parametrizations.weight_norm(m.conv)
    assert conversion_report(m).attention[0].status == "could be fused"
    assert conversion_report(convert(m)).attention[0].status == "fused"
    assert type(revert(m)) is ECA


def test_a_later_patch_of_a_class_takes_effect(monkeypatch):
    m, x = convert(ECA()), make_x((2, 16, 5, 6))
    monkeypatch.setattr(ECA, "forward", lambda self, x: 3 * x)
    assert torch.equal(m(x), 3 * x) and "forward was replaced" in conversion_report(m).attention[0].detail


def test_a_later_patch_of_a_method_takes_effect(monkeypatch):
    m, x = convert(ECA()), make_x((2, 16, 5, 6))
    monkeypatch.setattr(ECA, "gate", lambda self, x: 3)
    assert torch.equal(m(x), 3 * x) and "gate was replaced" in conversion_report(m).attention[0].detail


def test_a_later_change_of_a_global_takes_effect(monkeypatch):
    m, x = OfAGlobal(), make_x((2, 16, 5, 6))
    converted = convert(copy.deepcopy(m))
    assert isinstance(converted, FusedAttention)
    monkeypatch.setattr(__import__(__name__), "TAU", 5.0)
    assert torch.equal(converted(x), m(x)) and "TAU is 5.0" in conversion_report(converted).attention[0].detail


def test_a_later_patch_of_a_base_class_takes_effect(monkeypatch):
    class Derived(ECA):
        pass

    m, x = convert(Derived()), make_x((2, 16, 5, 6))
    monkeypatch.setattr(ECA, "act", property(lambda self: lambda z: 3), raising=False)
    assert torch.equal(m(x), 3 * x) and "act was replaced" in conversion_report(m).attention[0].detail


def test_weights_that_torch_recomputes_stay_fused():
    plain, x = ECA().double(), make_x((2, 16, 5, 6), torch.float64)
    converted = convert(copy.deepcopy(plain))
    for m in (plain, converted):
        prune.l1_unstructured(m.conv, "weight", amount=1)
    assert conversion_report(converted).attention[0].status == "fused"
    torch.testing.assert_close(results(converted, x), results(plain, x))


def test_copies_and_pickles_watch_their_own_modules():
    m, x = convert(InASequential()), make_x((2, 16, 5, 6))
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        assert torch.equal(other(x), m(x))
        other.tail[1] = nn.Tanh()
        assert conversion_report(other).attention[0].status == "left alone"
        assert conversion_report(m).attention[0].status == "fused"


def test_a_copy_made_after_a_patch_runs_the_patch(monkeypatch):
    m, x = convert(ECA()), make_x((2, 16, 5, 6))
    monkeypatch.setattr(ECA, "forward", lambda self, x: 3 * x)
    assert torch.equal(copy.deepcopy(m)(x), 3 * x)


def test_compiled_code_follows_changes():
    torch.compiler.reset()
    plain, x = annealed().eval(), make_x((2, 16, 5, 6))
    m = convert(copy.deepcopy(plain))
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(x))
    plain.own = m.own = 5.0
    torch.testing.assert_close(compiled(x), plain(x))
    plain.act = m.act = nn.Hardsigmoid()
    torch.testing.assert_close(compiled(x), plain(x))
