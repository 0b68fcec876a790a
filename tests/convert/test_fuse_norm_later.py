# SPDX-License-Identifier: MIT
"""Changes to or around a batch norm after ``convert(model, fuse_norm=True)`` take effect."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from eca_cuda import conversion_report, convert
from eca_cuda.testing import make_x, used_budget

pytest.importorskip("timm")
from test_fuse_norm import Block, C, Official, fused, in_a_sequential, left, own_layer, prepared, recorded

X = make_x((4, C, 5, 6), torch.float64)


def behaviour(block: nn.Module, x: Tensor = X, seen: Any = ()) -> list[Any]:
    """The results or errors, gradients and state of two calls: first in the block's mode, then in evaluation."""
    found: list[Any] = []
    for training in (block.training, False):
        block.training = training  # only of the block: its norm may be frozen
        for m in block.modules():
            if not training:
                m.training = False
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            try:
                y = block(leaf * 1)
                wanted = [leaf, *(p for p in block.parameters() if p.requires_grad)]
                found += [y.detach(), *torch.autograd.grad(y.square().sum(), wanted, allow_unused=True)]
            except Exception as error:
                found += [type(error).__name__, str(error)]
            found.append({name: t.clone() for name, t in block.state_dict().items()})
    return [None if value is None else value for value in (*found, *seen)]


def assert_same(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        if isinstance(one, (Tensor, dict)):
            torch.testing.assert_close(one, other, equal_nan=True)
        else:
            assert one == other


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    return recorded(monkeypatch)


def setting(**values: Any) -> Callable[[nn.Module, list], None]:
    def change(block: nn.Module, seen: list) -> None:
        for name, value in values.items():
            setattr(block.bn2, name, copy.deepcopy(value))

    return change


def replacing(make: Callable[[], nn.Module]) -> Callable[[nn.Module, list], None]:
    def change(block: nn.Module, seen: list) -> None:
        torch.manual_seed(1)
        block.bn2 = make().double().train(block.bn2.training)

    return change


def hooked(kind: str) -> Callable[[nn.Module, list], None]:
    def change(block: nn.Module, seen: list) -> None:
        register = getattr(block.bn2, f"register_{kind}")
        register(lambda _, *values: seen.extend(t.detach() for t in values[-1]) if values[-1] is not None else None)

    return change


def frozen(block: nn.Module, seen: list) -> None:
    block.bn2.eval().requires_grad_(False)


def without_gradients(block: nn.Module, seen: list) -> None:
    block.bn2.requires_grad_(False)


def wrapped(block: nn.Module, seen: list) -> None:
    block.bn2.forward = lambda x: 2 * x


def without_statistics(block: nn.Module, seen: list) -> None:
    block.bn2.running_mean = block.bn2.running_var = None


def synchronised(block: nn.Module, seen: list) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(block)


def pruned(block: nn.Module, seen: list) -> None:
    prune.custom_from_mask(block.bn2, "weight", torch.arange(C) % 2)


def parametrized(block: nn.Module, seen: list) -> None:
    nn.utils.parametrize.register_parametrization(block.bn2, "weight", nn.Softplus())


def tied(block: nn.Module, seen: list) -> None:
    """Make the shortcut's norm the same module, so that its statistics depend on the order of the two calls."""
    block.downsample[1] = block.bn2


# name -> (change, whether the norm stays part of the call)
LATER = {
    "nothing": (lambda block, seen: None, True),
    "frozen": (frozen, True),
    "without gradients": (without_gradients, True),
    "evaluation": (lambda block, seen: block.eval(), True),
    "momentum None": (setting(momentum=None), True),
    "momentum 0": (setting(momentum=0.0), True),
    "an infinite momentum": (setting(momentum=float("inf")), False),
    "eps": (setting(eps=0.5), True),
    "no tracking": (setting(track_running_stats=False), True),
    "no statistics": (without_statistics, True),
    "no count": (setting(num_batches_tracked=None), True),
    "no count, momentum None": (setting(num_batches_tracked=None, momentum=None), True),
    "one statistic": (setting(running_var=None), False),
    "no weight": (setting(weight=None), True),
    "no bias": (setting(bias=None), True),
    "weights of another dtype": (setting(weight=nn.Parameter(torch.rand(C).half())), False),
    "weights of another shape": (setting(weight=nn.Parameter(torch.rand(C + 1).double())), False),
    "another norm": (replacing(lambda: nn.BatchNorm2d(C, eps=0.1, momentum=0.5)), True),
    "a norm of another rank": (replacing(lambda: nn.BatchNorm3d(C)), False),
    "another kind of norm": (replacing(lambda: nn.GroupNorm(4, C)), False),
    "an identity": (replacing(nn.Identity), False),
    "SyncBatchNorm": (synchronised, False),
    "a hook": (hooked("forward_hook"), False),
    "a hook before": (hooked("forward_pre_hook"), False),
    "a backward hook": (hooked("full_backward_hook"), False),
    "a forward on the instance": (wrapped, False),
    "pruned": (pruned, False),
    "parametrized": (parametrized, False),
    "tied": (tied, None),  # depends on which of the two runs first
}


RAISES = ("one statistic", "weights of another dtype", "weights of another shape", "a norm of another rank")


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", LATER)
def test_a_later_change_of_a_norm_takes_effect(name, residual, calls):
    """Changes that raise do so after the shortcut's norm has counted, so their block has none."""
    change, goes_on = LATER[name]
    block = prepared(Official(downsample=name not in RAISES)).double()
    made, found = fused(block, residual), []
    for m in (block, made):
        seen: list = []
        change(m, seen)
        found.append(behaviour(m, seen=seen))
    assert_same(*found)
    assert bool(calls) == (goes_on if goes_on is not None else not residual)
    convert(made, fuse_norm=True, fuse_residual=residual)
    assert_same(behaviour(made), behaviour(block))


@pytest.mark.parametrize("change", ["hook", "replaced", "appended"])
def test_a_later_change_around_a_norm_takes_effect(change):
    block = Block(in_a_sequential, left=left(), bn=None).double()
    made, found = fused(block), []
    for m in (block, made):
        seen: list = []
        if change == "hook":
            m.left[1].register_forward_hook(lambda _, __, y, seen=seen: seen.append(y.detach()))
        elif change == "replaced":
            m.left[1] = nn.Tanh()
        else:
            m.left[1].append(nn.Tanh())
        found.append(behaviour(m, seen=seen))
    assert_same(*found)


def interleaved(m: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    u, v = m.bn(y), m.bn2(x)
    second = m.eca2(v)
    return m.eca(u) * 2 + second * 3


def test_two_norms_that_become_one_later_run_in_their_order():
    """The attention that is found first, and fused first, runs first; the norm of the other does."""
    block = Block(interleaved, bn2=nn.BatchNorm2d(C), eca2=own_layer().eca)
    block.eca = block._modules.pop("eca")  # last among the modules
    block = prepared(block).double()
    made, found = fused(block), []
    assert_same(behaviour(copy.deepcopy(made)), behaviour(copy.deepcopy(block)))
    for m in (block, made):
        m.bn2 = m.bn
        found.append(behaviour(m))
    assert_same(*found)


INSIDE = {
    "a hook": lambda conv: conv.register_forward_hook(lambda _, __, y: 2 * y),
    "a forward on the instance": lambda conv: setattr(conv, "forward", lambda m: 2 * m),
    "pruned": lambda conv: prune.custom_from_mask(conv, "weight", torch.tensor([[[1.0, 0.0, 1.0]]])),
    "a bias": lambda conv: setattr(conv, "bias", nn.Parameter(torch.ones(1).double())),
}


@pytest.mark.parametrize("make", [Official, own_layer])
@pytest.mark.parametrize("change", INSIDE.values(), ids=INSIDE)
def test_a_later_change_inside_the_attention_takes_effect(make, change, calls):
    block = prepared(make()).double()
    made, found = fused(block), []
    for m in (block, made):
        change(next(conv for conv in m.eca.modules() if isinstance(conv, nn.Conv1d)))
        found.append(behaviour(m))
    assert_same(*found)
    assert bool(calls) == (change not in (INSIDE["a hook"], INSIDE["a forward on the instance"]))


def test_a_later_patch_of_its_class_takes_effect_and_the_report_says_so(monkeypatch, calls):
    made = fused(Official())
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: 3 * x)
    with torch.no_grad():
        torch.testing.assert_close(made(X.float()), Official.forward(made, X.float()))
    assert not calls
    assert "its own forward runs because forward was replaced; now" in conversion_report(made).norm[0].detail


@pytest.mark.parametrize("make", [Official, own_layer])
@pytest.mark.parametrize(
    "x", [X[:1, :, :1, :1], X[..., 0], X.half(), X[:, :8], X[:0]], ids=lambda x: f"{x.dtype} {tuple(x.shape)}"
)
def test_calls_that_batch_norm_refuses_raise_the_same_and_count_the_same(make, x):
    block = prepared(make()).double()
    block.conv1 = block.bn1 = block.conv2 = nn.Identity()
    assert_same(behaviour(fused(block), x), behaviour(block, x))


@pytest.mark.parametrize("make", [Official, own_layer])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("whole", [True, False], ids=["all of it", "autocast"])
def test_half_precision_with_float32_norms(make, half, whole, calls):
    """``model.half()`` with norms in float32; under autocast the convolution's output is half, the shortcut is not."""
    block, x = prepared(make()), make_x((4, C, 5, 6)).to(half).float()
    if whole:
        block.to(half), block.bn1.float(), block.bn2.float()
        x = x.to(half)
    made, exact = fused(block), copy.deepcopy(block).double()
    with torch.autocast("cpu", half, enabled=not whole):
        y, eager = made(x), block(x)
    assert y.dtype == eager.dtype and len(calls) == 1
    used_budget("y", y.to(half), eager.to(half), exact(x.double()), terms=x[0].numel())
    torch.testing.assert_close(made.bn2.state_dict(), block.bn2.state_dict())


def test_checkpointing_counts_as_often_and_gives_the_same_gradients():
    block, found = prepared(Official()).double(), []
    for m in (block, fused(block)):
        x = X.clone().requires_grad_()
        y = checkpoint(lambda x, m=m: m(x * 1), x, use_reentrant=False)
        found.append([*torch.autograd.grad(y.square().sum(), [x, *m.parameters()]), m.state_dict()])
    assert_same(*found)
    assert int(m.bn2.num_batches_tracked) == 2


@pytest.mark.parametrize("residual", [True, False])
def test_double_backward(residual):
    block, found = prepared(Official()).double(), []
    for m in (block, fused(block, residual)):
        x = X.clone().requires_grad_()
        inputs = [x, *m.parameters()]
        grads = torch.autograd.grad(m(x * 1).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    torch.testing.assert_close(*found)


def test_functional_calls_and_their_buffers():
    block, found = prepared(Official()).double(), []
    for m in (block, fused(block)):
        tensors = {name: t.detach() * 2 for name, t in m.state_dict().items()}
        before = copy.deepcopy(m.state_dict())
        y = torch.func.functional_call(m, tensors, (X,))
        grads = torch.func.grad(lambda p, m=m: torch.func.functional_call(m, p, (X,)).sum())(
            {name: t.clone() for name, t in m.eval().named_parameters()}
        )
        m.train()
        torch.testing.assert_close(m.state_dict(), before, rtol=0, atol=0)
        found.append([y, tensors, grads])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("make", [Official, own_layer])
def test_a_trace_of_torch_fx_keeps_the_norm_as_a_module_with_a_mode_of_its_own(make):
    block = prepared(make()).double()
    made, block = nn.Sequential(fused(block)), nn.Sequential(block)
    before = copy.deepcopy(block.state_dict())
    traced = torch.fx.symbolic_trace(made)
    assert {str(node.target) for node in traced.graph.nodes} >= {"0.bn1", "0.bn2"}
    assert not [node for node in traced.graph.nodes if node.target == "dim"], "no question to the norm's input"
    torch.testing.assert_close(made.state_dict(), before, rtol=0, atol=0)
    for training in (True, False):
        torch.testing.assert_close(traced.train(training)(X), block.train(training)(X))
    torch.testing.assert_close(traced.state_dict(), block.state_dict())


COMPILED = {
    "nothing": lambda block, seen: None,
    "frozen": frozen,
    "a hook": hooked("forward_hook"),
    "eps": setting(eps=0.5),
    "evaluation": lambda block, seen: block.eval(),
}


@pytest.mark.parametrize("make", [Official, own_layer])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_blocks_train_alike_and_see_changes(make, name):
    torch.compiler.reset()
    block, found = prepared(make()).double(), []
    made = fused(block)
    made.compile(backend="aot_eager", fullgraph=True)
    assert_same(behaviour(made), behaviour(block))
    for m in (block, made):
        m.train()
        COMPILED[name](m, [])
        found.append(behaviour(m))
    assert_same(*found)
