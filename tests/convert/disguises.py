# SPDX-License-Identifier: MIT
"""Modules that compute ECA for ordinary x, and differ from it or have side effects in special cases."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 1.0
SETTINGS = {"logger": object()}
CALLS = 0


class ECA(nn.Module):
    """Plain ECA. ``change`` replaces the product: a function of the module, x and the function from x to its gate."""

    def __init__(self, change=lambda m, x, gate: x * gate(x)):
        super().__init__()
        self.pool, self.act = nn.AdaptiveAvgPool2d(1), nn.Sigmoid()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.change = change

    def logits(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x).squeeze(-1).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)

    def gate(self, x: Tensor) -> Tensor:
        return self.act(self.logits(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self, x, self.gate)


class StraightThrough(torch.autograd.Function):
    """A gate with the gradient of another function."""

    @staticmethod
    def forward(ctx, z):
        return z.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        return grad


def counted(x):
    global CALLS
    CALLS += 1
    return x


class Accessor:
    """A user's object, which may change at any time."""

    tau = 1.0


class WithAttribute(ECA):
    def __init__(self, value, change):
        super().__init__(change)
        self.own = value


class ReadsABuffer(ECA):
    def __init__(self):
        super().__init__(lambda m, x, gate: x * gate(x) * m.scale)
        self.register_buffer("scale", torch.ones(()))


class Counts(ECA):
    """Counts calls in a dict that all instances share."""

    calls: ClassVar = {"n": 0}

    def forward(self, x):
        self.calls["n"] += 1
        return x * self.gate(x)


class WarmsUp(ECA):
    """The first calls, over all instances, return x."""

    steps: ClassVar = []

    def forward(self, x):
        if len(self.steps) < 5:
            self.steps.append(0)
            return x
        return x * self.gate(x)


class Tempered(ECA):
    tau = 1.0

    @classmethod
    def temper(cls, z):
        return z / cls.tau


class OfItsClass(Tempered):
    def forward(self, x):
        return x * self.act(self.temper(self.logits(x)))


class OfItsBase(Tempered):
    def forward(self, x):
        return x * self.act(self.logits(x) / super().tau)


class Dials(dict):
    """A dict whose attributes ``==`` ignores."""

    tau = 1.0


class SharesItsCopy(ECA):
    """A module whose conv returns itself from deepcopy."""

    class Conv(nn.Conv1d):
        def __deepcopy__(self, memo):
            return self

    def __init__(self):
        super().__init__()
        self.conv = self.Conv(1, 1, 3, padding=1, bias=False)


def written_back(m, x, gate):
    y = x * gate(x)
    x.data.copy_(y)
    return y


def with_default_dtype(m, x, gate):
    torch.set_default_dtype(torch.float64)
    return x * gate(x)


def caught(m, x, gate):
    try:
        skip = x.shape[0] == 1
    except Exception:
        skip = False
    return x if skip else x * gate(x)


def tempered(z):
    return z / tempered.tau


tempered.tau = 1.0


def guarded(m, x, gate):
    """The common guard against overflow in float16."""
    y = x * gate(x)
    return y.clamp(-65504, 65504) if x.dtype == torch.float16 else y


def guarded_in_float32(m, x, gate):
    return x.clamp(-3e38, 3e38) * gate(x) if x.dtype == torch.float32 else x * gate(x)


# name -> (what the forward does, part of the reason for leaving the module alone)
NUMBERS = {
    "clamped gate": (lambda m, x, gate: x * gate(x).clamp(0.1, 0.9), "something else"),
    "open hard sigmoid": (lambda m, x, gate: x * (m.logits(x) / 6 + 0.5), "something else"),
    "clamped logits": (lambda m, x, gate: x * m.act(m.logits(x).clamp(-2, 2)), "something else"),
    "logits clamped at 20": (lambda m, x, gate: x * m.act(m.logits(x).clamp(-20, 20)), "something else"),
    "small gates are zero": (lambda m, x, gate: x * gate(x).where(gate(x) > 0.1, 0), "something else"),
    "clamped x": (lambda m, x, gate: (lambda c: c * gate(c))(x.clamp(-50, 50)), "something else for large x"),
    "clamped output": (lambda m, x, gate: (x * gate(x)).clamp(-1e5, 1e5), "something else for huge x"),
    "epsilon": (lambda m, x, gate: x * m.act(m.logits(x) + 1e-5), "something else"),
    "NaN is zero": (lambda m, x, gate: (lambda c: c * gate(c))(x.nan_to_num()), "something else where x is not finite"),
    "its square root and square": (lambda m, x, gate: x * gate(x).sqrt().square() ** 1.0001, "something else"),
    "float32 for half": (
        lambda m, x, gate: x.float() * gate(x).float(),
        "returns torch.float32 for x in torch.float16",
    ),
    "contiguous": (lambda m, x, gate: (x * gate(x)).contiguous(), "its output has strides"),
    "in place": (lambda m, x, gate: x.mul_(gate(x)), "writes into x"),
    "in place unseen by autograd": (written_back, "uses Tensor.data"),
}
GRADIENTS = {
    "detached input": (lambda m, x, gate: x * gate(x.detach()), "gradient of x differs"),
    "detached gate": (lambda m, x, gate: x * gate(x).detach(), "gradient of x differs"),
    "detached weight": (
        lambda m, x, gate: (
            x * F.conv1d(x.mean((2, 3))[:, None], m.conv.weight.detach(), padding=1).sigmoid()[:, 0, :, None, None]
        ),
        "gradient of conv.weight differs",
    ),
    "without gradients": (lambda m, x, gate: torch.no_grad()(lambda: x * gate(x))(), "its output has no gradient"),
    "its own backward": (lambda m, x, gate: x * StraightThrough.apply(m.logits(x)), "uses StraightThrough, a class"),
}
DECISIONS = {
    "for one sample": (lambda m, x, gate: x if x.shape[0] == 1 else x * gate(x), "compares sizes"),
    "for wide maps": (lambda m, x, gate: x if x.size(3) > 32 else x * gate(x), "compares sizes"),
    "for many positions": (lambda m, x, gate: x if x[0, 0].numel() > 1024 else x * gate(x), "compares sizes"),
    "for many positions, multiplied": (
        lambda m, x, gate: x if x.shape[2] * x.shape[3] > 1024 else x * gate(x),
        "compares sizes",
    ),
    "for odd sizes": (lambda m, x, gate: x if x.shape[2] % 64 == 63 else x * gate(x), "compares sizes"),
    "for a size beside a float": (lambda m, x, gate: x if x.size(3) > 64.5 else x * gate(x), "compares sizes"),
    "for flat maps": (lambda m, x, gate: x if 1.0 * x.shape[3] / x.shape[2] > 8 else x * gate(x), "compares sizes"),
    "for a logarithm": (lambda m, x, gate: x if math.log2(x.shape[1]) > 9.5 else x * gate(x), "compares sizes"),
    "for a root": (lambda m, x, gate: x if math.isqrt(x.shape[1]) > 30 else x * gate(x), "compares sizes"),
    "for a count": (lambda m, x, gate: x if len([*range(x.shape[2])]) > 99 else x * gate(x), "compares sizes"),
    "for a list": (lambda m, x, gate: x if len([0] * x.shape[2]) > 99 else x * gate(x), "compares sizes"),
    "for an entry": (lambda m, x, gate: x * gate(x) * ((1.0,) * 99)[x.shape[2]], "compares sizes"),
    "for a text": (lambda m, x, gate: x if len(f"{x.shape[2]}") > 2 else x * gate(x), "compares sizes"),
    "for a sign": (lambda m, x, gate: x if +x.shape[2] > 99 else x * gate(x), "compares sizes"),
    "by a rounded size": (lambda m, x, gate: x * gate(x) * (1 + x.shape[2] // 128), "compares sizes"),
    "by a size among tensors": (
        lambda m, x, gate: x * gate(x).where(gate(x) * 0 + x.shape[2] < 99, 0),
        "computes with sizes, in add",
    ),
    "for the first frames": (
        lambda m, x, gate: x * m.act(m.logits(torch.stack(x.unbind(2)[:16], 2))),
        "uses Tensor.unbind",
    ),
    "for float16": (guarded, "something else for huge x"),
    "for float32": (guarded_in_float32, "something else for huge x"),
    "gradients for bfloat16": (
        lambda m, x, gate: x * gate(x.detach() if x.dtype == torch.bfloat16 else x),
        "gradient of x differs",
    ),
    "where exceptions are caught": (caught, "catches exceptions"),
    "for a value": (lambda m, x, gate: x if x.sum() == 12345 else x * gate(x), "uses Tensor.__bool__"),
    "for an item": (lambda m, x, gate: x if x.amax().item() == 7 else x * gate(x), "uses Tensor.item"),
    "for a float": (lambda m, x, gate: x if float(x.amax()) == 7 else x * gate(x), "reads Tensor.__float__"),
    "for a type": (
        lambda m, x, gate: x if "cuda" in x.type() else x * gate(x),
        "reads Tensor.type",
    ),
    "on a GPU": (lambda m, x, gate: x if x.is_cuda else x * gate(x), "uses Tensor.is_cuda"),
    "on a device": (lambda m, x, gate: x if x.device.type == "cuda" else x * gate(x), "uses Tensor.device"),
    "for leaves": (lambda m, x, gate: x if x.is_leaf and x.grad_fn else x * gate(x), "uses Tensor.is_leaf"),
    "for layouts": (lambda m, x, gate: x if not x.is_contiguous() else x * gate(x), "uses Tensor.is_contiguous"),
}
BESIDES = {
    "prints": (lambda m, x, gate: print("hello") or x * gate(x), "uses print"),
    "counts in a global": (lambda m, x, gate: counted(x * gate(x)), "sets CALLS, which is not a local variable"),
    "sets the default dtype": (with_default_dtype, "uses torch.set_default_dtype"),
    "reads an object among the globals": (
        lambda m, x, gate: x * gate(x) if SETTINGS["logger"] else x,
        "uses SETTINGS, a dict",
    ),
    "reads an attribute of a function": (lambda m, x, gate: x * m.act(tempered(m.logits(x))), "reads tempered.tau"),
    "switches gradients on": (lambda m, x, gate: torch.enable_grad()(lambda: x * gate(x))(), "enables gradients"),
    "reads its dict": (lambda m, x, gate: x * gate(x) if "tau" not in m.__dict__ else x, "reads __dict__"),
}


def around(value):
    return lambda m, x, gate: x * gate(x) if value else x


OF_OTHER_CLASSES = {
    "reads an object": (
        lambda: WithAttribute(Accessor(), lambda m, x, gate: x * m.act(m.logits(x) / m.own.tau)),
        "reads own, a Accessor",
    ),
    "reads a module in a list": (
        lambda: WithAttribute([nn.Identity()], lambda m, x, gate: x * gate(m.own[0](x))),
        "reads own, a list",
    ),
    "reads a tensor": (
        lambda: WithAttribute(torch.ones(()), lambda m, x, gate: x * gate(x) * m.own),
        "reads own, a tensor",
    ),
    "calls another's method": (
        lambda: WithAttribute(nn.Sigmoid().forward, lambda m, x, gate: x * m.own(m.logits(x))),
        "calls own, a method of another object",
    ),
    "reads a dict with attributes": (
        lambda: WithAttribute(Dials(), lambda m, x, gate: x * m.act(m.logits(x) / m.own.tau)),
        "reads own, a Dials",
    ),
    "counts in a dict of its class": (Counts, "sets attributes"),
    "counts in a list of its class": (WarmsUp, "sets attributes"),
    "calls a method of its class": (OfItsClass, "a method of another object or of its class"),
    "reads an attribute of its base": (OfItsBase, "reads super().tau"),
    "reads a buffer": (ReadsABuffer, "uses its buffer scale"),
    "reads an object around it": (lambda: ECA(around(Accessor())), "uses value, a Accessor"),
}
