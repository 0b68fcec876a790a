# SPDX-License-Identifier: MIT
"""Twenty training steps with batch norm, attention, shortcut and ReLU in one call differ from eager by rounding only.

The effect of rounding over twenty steps is measured in float64 on two trainings that sum in another order: with the
samples of each batch reversed, and with the attention fused but not the norm.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import eca_cuda
from eca_cuda import convert

timm = pytest.importorskip("timm")

STEPS, BATCH, SIZE, CLASSES = 20, 4, 64, 10
# Rounding is random: ours may differ by a few times as much as the larger of two draws.
DRAWS = 8


def make_model(name: str) -> nn.Module:
    """A narrow model with all blocks, and random gains where timm starts at zero, so that all branches train."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, base_width=32, channels=(32, 48, 64, 96), stem_width=16)
    with torch.no_grad():
        for p in model.parameters():
            if not p.count_nonzero():
                p.uniform_(0.1, 0.5)
    return model.double().train()


def trained(model: nn.Module, order: Callable[[Tensor], Tensor] = lambda t: t) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses, and the parameters and buffers at the end."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(2, BATCH, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (2, BATCH), generator=generator)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(order(images[step % 2])), order(labels[step % 2]))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), model.state_dict()


@pytest.mark.parametrize("name, blocks", [("ecaresnet26t", 8), ("ecaresnet50d", 16)])
def test_twenty_steps_match_eager(name, blocks, monkeypatch):
    calls, original = [], eca_cuda.functional.batch_norm_eca
    monkeypatch.setattr(eca_cuda.functional, "batch_norm_eca", lambda *a, **k: calls.append(k) or original(*a, **k))
    losses, state = trained(make_model(name))
    others = [
        trained(make_model(name), lambda t: t.flip(0)),
        trained(convert(make_model(name), fuse_residual=True)),
    ]
    assert not calls
    our_losses, our_state = trained(convert(make_model(name), fuse_residual=True, fuse_norm=True))
    assert len(calls) == STEPS * blocks
    assert all(call["training"] and call["activation"] == "relu" and call["residual"] is not None for call in calls)
    assert losses[-1] < losses[0] / 2, "it must learn something"
    assert_within_rounding("losses", our_losses, losses, [other for other, _ in others])
    for key, expected in state.items():
        if expected.is_floating_point():
            assert_within_rounding(key, our_state[key], expected, [other[key] for _, other in others])
        else:
            assert int(our_state[key]) == int(expected) == STEPS, key


def assert_within_rounding(name: str, ours: Tensor, expected: Tensor, others: list[Tensor]) -> None:
    """``others`` show what rounding does; it must be small, or the comparison would show nothing."""
    scale = float(expected.abs().max())
    rounding = max(float((other - expected).abs().max()) for other in others)
    assert rounding <= 1e-9 * scale, name
    allowed = DRAWS * max(rounding, torch.finfo(torch.float64).eps * scale)
    assert float((ours - expected).abs().max()) <= allowed, name
