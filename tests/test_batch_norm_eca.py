# SPDX-License-Identifier: MIT
"""``batch_norm_eca`` is ``F.batch_norm``, then ``eca``: values, gradients, running statistics, errors."""

import pytest
import torch
import torch.nn.functional as F

from eca_cuda import batch_norm_eca, reference
from eca_cuda.testing import make_x


def test_the_reference_is_batch_norm_and_then_eca():
    x, residual = make_x((3, 8, 5, 4), torch.float64), make_x((3, 8, 5, 4), torch.float64, seed=2)
    weight, gamma, beta = torch.randn(1, 1, 3).double(), torch.randn(8).double(), torch.randn(8).double()
    running = [torch.randn(8).double(), torch.rand(8).double() + 0.5]
    expected = [t.clone() for t in running]
    u = F.batch_norm(x, *expected, gamma, beta, True, 0.3, 1e-3)
    y = reference.batch_norm_eca(
        x, weight, gamma, beta, *running, training=True, momentum=0.3, eps=1e-3, residual=residual, activation="relu"
    )
    assert torch.equal(y, reference.eca(u, weight, residual=residual, activation="relu"))
    assert all(map(torch.equal, running, expected))


def test_one_value_per_channel_is_refused_as_torch_does():
    x, weight = torch.ones(1, 4, 1, 1), torch.ones(1, 1, 3)
    with pytest.raises(ValueError, match="more than one value per channel"):
        batch_norm_eca(x, weight, None, None, None, None, training=True)
