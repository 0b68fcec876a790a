# SPDX-License-Identifier: MIT
"""Modules that compute ECA for ordinary x, and something else, or something besides, where nobody looks at first."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEMPERATURE = 1.0
SETTINGS = {"logger": object()}
CALLS = 0


class ECA(nn.Module):
    """The real one. ``change`` makes another of it: a function of the module, x and the function from x to its gate."""

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
    """A gate whose gradient is that of something else."""

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
    """An object of one's own, which may change at any time."""

    tau = 1.0


class WithAttribute(ECA):
    def __init__(self, value, change):
        super().__init__(change)
        self.own = value


class ReadsABuffer(ECA):
    def __init__(self):
        super().__init__(lambda m, x, gate: x * gate(x) * m.scale)
        self.register_buffer("scale", torch.ones(()))


class SharesItsCopy(ECA):
    """One whose conv answers deepcopy with itself."""

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


# name -> what becomes of x, and a part of the reason for leaving the module alone
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
    "float32 for half": (lambda m, x, gate: x.float() * gate(x).float(), "returns torch.float32 for torch.float16"),
    "contiguous": (lambda m, x, gate: (x * gate(x)).contiguous(), "has not the strides of x"),
    "in place": (lambda m, x, gate: x.mul_(gate(x)), "writes into x"),
    "in place unseen by autograd": (written_back, "uses Tensor.data"),
}
GRADIENTS = {
    "detached input": (lambda m, x, gate: x * gate(x.detach()), "gradient by x is another"),
    "detached gate": (lambda m, x, gate: x * gate(x).detach(), "gradient by x is another"),
    "detached weight": (
        lambda m, x, gate: (
            x * F.conv1d(x.mean((2, 3))[:, None], m.conv.weight.detach(), padding=1).sigmoid()[:, 0, :, None, None]
        ),
        "gradient by conv.weight is another",
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
    "where exceptions are caught": (caught, "compares sizes"),
    "for a value": (lambda m, x, gate: x if x.sum() == 12345 else x * gate(x), "uses Tensor.__bool__"),
    "for an item": (lambda m, x, gate: x if x.amax().item() == 7 else x * gate(x), "uses Tensor.item"),
    "for a float": (lambda m, x, gate: x if float(x.amax()) == 7 else x * gate(x), "asks for Tensor.__float__"),
    "for a type": (
        lambda m, x, gate: x if "cuda" in x.type() else x * gate(x),
        "asks for Tensor.type",
    ),
    "on a GPU": (lambda m, x, gate: x if x.is_cuda else x * gate(x), "uses Tensor.is_cuda"),
    "on a device": (lambda m, x, gate: x if x.device.type == "cuda" else x * gate(x), "uses Tensor.device"),
    "for leaves": (lambda m, x, gate: x if x.is_leaf and x.grad_fn else x * gate(x), "uses Tensor.is_leaf"),
    "for layouts": (lambda m, x, gate: x if not x.is_contiguous() else x * gate(x), "uses Tensor.is_contiguous"),
}
BESIDES = {
    "prints": (lambda m, x, gate: print("hello") or x * gate(x), "uses print"),
    "counts in a global": (lambda m, x, gate: counted(x * gate(x)), "sets CALLS, which is not its own"),
    "sets the default dtype": (with_default_dtype, "uses torch.set_default_dtype"),
    "reads an object among the globals": (
        lambda m, x, gate: x * gate(x) if SETTINGS["logger"] else x,
        "uses SETTINGS, a dict",
    ),
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
    "reads a buffer": (ReadsABuffer, "uses its buffer scale"),
    "reads an object around it": (lambda: ECA(around(Accessor())), "uses value, a Accessor"),
}
