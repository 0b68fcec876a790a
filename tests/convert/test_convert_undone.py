# SPDX-License-Identifier: MIT
"""``convert`` does all or nothing, ``revert`` leaves no trace, and unusual modules break neither."""

import gc
import sys
import weakref

import pytest
import torch
from lookalikes import eca_layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eca_cuda import conversion, conversion_report, convert, revert
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.testing import make_x


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.eca = nn.Conv2d(16, 16, 1), eca_layer(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.eca(self.conv(x)) + x)


@pytest.mark.parametrize("fails_at", range(6))
def test_an_error_midway_leaves_the_model_as_it_was(fails_at, monkeypatch):
    model = nn.Sequential(*(Block() for _ in range(3)))
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    original, calls = conversion.swap, []

    def swap(*args):
        calls.append(args)
        if len(calls) > fails_at:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(conversion, "swap", swap)
    with pytest.raises(KeyboardInterrupt):
        convert(model, fuse_residual=True)
    assert [(type(m), vars(m)) for m in model.modules()] == before and len(calls) == fails_at + 1


def test_a_class_is_freed_after_revert_and_has_no_subclass():
    class Local(eca_layer):
        pass

    module = convert(Local(16))
    assert isinstance(module, FusedAttention)
    revert(module)
    gc.collect()
    assert Local.__subclasses__() == []
    reference = weakref.ref(Local)
    del Local, module
    gc.collect()
    assert reference() is None


def test_a_class_that_registers_or_refuses_subclasses_is_not_notified():
    heard = []

    class Registers(eca_layer):
        def __init_subclass__(cls, **options):
            heard.append(cls)
            raise TypeError("final")

    model = nn.Sequential(eca_layer(16), Registers(16), eca_layer(16))
    assert [isinstance(m, FusedAttention) for m in convert(model)] == [True] * 3
    assert not heard and type(revert(model)[1]) is Registers


def test_a_metaclass_that_refuses_is_a_reason():
    class Final(type):
        def __new__(meta, name, bases, scope):
            if any(isinstance(base, Final) for base in bases):
                raise TypeError("final")
            return super().__new__(meta, name, bases, scope)

    class Module(eca_layer, metaclass=Final):
        pass

    model = nn.Sequential(eca_layer(16), Module(16))
    assert [isinstance(m, FusedAttention) for m in convert(model)] == [True, False]
    assert "final" in conversion_report(model).attention[1].detail and "_eca_cuda" not in vars(model[1])


@pytest.mark.filterwarnings("ignore:convert. no attention")
def test_an_attribute_with_the_name_of_the_state_is_kept():
    module = eca_layer(16)
    module._eca_cuda = "mine"
    convert(module)
    assert type(module) is eca_layer and module._eca_cuda == "mine"
    assert "has an attribute _eca_cuda" in conversion_report(module).attention[0].detail


class NamesItResidual(eca_layer):
    def forward(self, residual):
        return super().forward(residual)


def test_an_argument_named_like_an_option_is_the_modules_own():
    x = make_x((2, 16, 5, 6))
    module = NamesItResidual(16)
    expected = module(x)
    convert(module)
    torch.testing.assert_close(module(residual=x), expected)
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        module(x, x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'activation'"):
        module(x, activation="relu")


class HoldsItsParent(eca_layer):
    def __init__(self, parent):
        super().__init__(16)
        self.parent = parent


@pytest.mark.filterwarnings("ignore:convert. no attention")
def test_a_module_that_holds_its_parent_causes_no_endless_recursion():
    parent = nn.Module()
    parent.eca = HoldsItsParent(parent)
    before = sys.getrecursionlimit()
    convert(parent)
    conversion_report(parent)
    revert(parent)
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize(
    "mode",
    [FakeTensorMode, torch.inference_mode, torch.no_grad, lambda: torch.device("meta")],
    ids=["fake", "inference", "no_grad", "meta"],
)
def test_it_runs_under_any_mode(mode):
    with mode():
        module = eca_layer(16)
        convert(module)
        assert isinstance(module, FusedAttention)


def test_a_default_dtype_of_the_user_stays():
    torch.set_default_dtype(torch.float64)
    try:
        assert isinstance(convert(eca_layer(16)), FusedAttention)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:convert. no attention")
def test_torchscript_is_left_alone_as_torchscript():
    traced = torch.jit.trace(eca_layer(16), make_x((2, 16, 5, 6)))
    model = nn.Sequential(traced)
    convert(model)
    assert [f.detail for f in conversion_report(model).attention] == [
        "it is TorchScript, whose forward cannot be replaced"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripting_says_to_revert():
    model = convert(nn.Sequential(eca_layer(16)))
    with pytest.raises(RuntimeError, match=r"call eca_cuda\.revert\(model\) first"):
        torch.jit.script(model)
    torch.jit.script(revert(model))


def test_a_default_device_does_not_affect_the_trial():
    module = eca_layer(16)
    torch.set_default_device("meta")
    try:
        assert isinstance(convert(module), FusedAttention)
    finally:
        torch.set_default_device(None)


class Settings(dict):
    """A dict with its entries as attributes, and no others."""

    def __getattr__(self, name):
        return self[name]


class WithSettings(eca_layer):
    settings = Settings(k=3)


class IsNotANumber(eca_layer):
    def __init__(self, channel):
        super().__init__(channel)
        self.limit = float("nan")

    def forward(self, x):
        return super().forward(x) if self.limit != 0 else x


class Exports(eca_layer):
    @torch.jit.export
    def twice(self, x: Tensor) -> Tensor:
        return 2 * x


def test_odd_attributes_of_a_class_do_not_matter():
    assert isinstance(convert(WithSettings(16)), FusedAttention)


def test_what_is_not_equal_to_itself_is_a_reason():
    (finding,) = conversion_report(IsNotANumber(16)).attention
    assert finding.detail == "its forward reads limit, a float, whose changes cannot be detected"


def test_a_trace_works_with_an_exported_method():
    module, x = convert(Exports(16)), make_x((2, 16, 3, 3))
    torch.testing.assert_close(torch.jit.trace(module, x)(x), module(x))
