# SPDX-License-Identifier: MIT
"""What training scripts do around a layer: checkpointing, loss scaling, gradient penalties."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from cases import DEFAULTS, Case
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from eca_cuda import ops
from eca_cuda.testing import make_x

SHAPE = (2, 20, 3, 5)
FUSED = [variant.forward for variant in ops.OPERATORS.values()]
SAVE_FUSED = partial(create_selective_checkpoint_contexts, FUSED)
RECOMPUTE_ALL = partial(create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy.MUST_RECOMPUTE)

Run = Callable[..., Tensor]
CHECKPOINTS: dict[str, Callable[[Run], Run]] = {
    "reentrant": lambda f: partial(checkpoint, f, use_reentrant=True),
    "non-reentrant": lambda f: partial(checkpoint, f, use_reentrant=False),
    "selective-save": lambda f: partial(checkpoint, f, use_reentrant=False, context_fn=SAVE_FUSED),
    "selective-recompute": lambda f: partial(checkpoint, f, use_reentrant=False, context_fn=RECOMPUTE_ALL),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_activation_checkpointing_changes_no_bit(case, kind, compiled, device):
    torch.compiler.reset()
    x, parameters = case.inputs(SHAPE, device=device)
    grad_y = make_x(SHAPE, seed=3, device=device)

    def block(x: Tensor, *parameters: Tensor) -> Tensor:
        return case.variant.function(x, *parameters, activation="relu").sin()

    def run(function: Run) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        y = function(*leaves)
        y.backward(grad_y)  # reentrant checkpointing refuses torch.autograd.grad
        return [y.detach(), *(t.grad for t in leaves)]

    checkpointed = CHECKPOINTS[kind](block)
    if compiled:
        checkpointed = torch.compile(checkpointed, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, run(checkpointed), run(block)))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_checkpoint_may_end_with_a_layer(case, activation, device):
    """Its repetition ends by an exception, which saving the last tensor for backward raises out of the call."""
    x, parameters = case.inputs(SHAPE, device=device)

    def run(checkpointed: bool) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
        function = partial(case.variant.function, activation=activation)
        y = checkpoint(function, *leaves, use_reentrant=False) if checkpointed else function(*leaves)
        y.sum().backward()
        return [y.detach(), *(t.grad for t in leaves)]

    assert all(map(torch.equal, run(True), run(False)))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_what_a_hook_raises_is_raised_once(case, device):
    x, parameters = case.inputs(SHAPE, device=device)
    raised = []

    def pack(t: Tensor) -> Tensor:
        raised.append(RuntimeError("no room"))
        raise raised[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), pytest.raises(RuntimeError) as caught:
        case.variant.function(x.requires_grad_(), *parameters)
    assert [caught.value] == raised


def model(case: Case, device: str) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 20, 3), case.variant.module(20), nn.ReLU(), nn.Conv2d(20, 4, 1)
    return nn.Sequential(*layers).to(device)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_grad_scaler_unscales_skips_and_steps(case, device):
    """float16 autocast, float32 parameters: scaling does not change the step, and an overflow skips it."""
    x = make_x((2, 3, 9, 9), device=device)
    stepped = []
    for enabled in (True, False):
        network = model(case, device)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**12, enabled=enabled)
        with torch.autocast(device, dtype=torch.float16):
            loss = network(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        stepped.append([p.detach().clone() for p in network.parameters()])
    # Scales are powers of two, so only gradients that underflow in float16 differ.
    torch.testing.assert_close(stepped[0], stepped[1], rtol=1e-2, atol=1e-3)

    network = model(case, device)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**30)
    with torch.autocast(device, dtype=torch.float16):
        loss = network(1e3 * x).float().square().mean()
    scaler.scale(loss).backward()
    assert not all(p.grad.isfinite().all() for p in network[1].parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**29
    assert all(map(torch.equal, before, network.parameters()))


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_a_gradient_penalty_step_is_that_of_the_reference(case, device):
    """WGAN-GP: the loss contains the norm of the gradient of the input, so backward differentiates twice."""
    x = make_x(SHAPE, torch.float64, device=device)
    stepped = []
    for function in (case.variant.function, case.variant.reference):
        _, parameters = case.inputs(SHAPE, torch.float64, device=device)
        parameters = [p.requires_grad_() for p in parameters]
        leaf = x.clone().requires_grad_()
        score = function(leaf, *parameters, residual=leaf, activation="relu").square().mean((1, 2, 3))
        (gradient,) = torch.autograd.grad(score.sum(), leaf, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        (score.mean() + 10 * penalty).backward()
        torch.optim.SGD(parameters, 0.1).step()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
        stepped.append([p.detach() for p in parameters])
    torch.testing.assert_close(*stepped)
