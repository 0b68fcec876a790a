# SPDX-License-Identifier: MIT
"""The specification is right: numbers worked out by hand, and the originals' and timm's own code, forward and backward.

Means are chosen so that gates are simple: sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4 and
sigmoid(2 ln 3) = 9/10. Every plane holds mean - 1 and mean + 1, so that only the mean can give these gates.
"""

import ast
from collections.abc import Sequence
from math import exp, log
from pathlib import Path

import originals
import pytest
import torch
from torch import Tensor, nn

from eca_cuda import reference
from eca_cuda.testing import BIDIRECTIONAL, ECA, MULTI_KERNEL, make_x

L = log(3)
SEED = Path(__file__).parents[3] / "shared" / "seed.py"


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def taps(*numbers: float) -> Tensor:
    return vector(*numbers).view(1, 1, -1)


def map_with_means(*means: float) -> Tensor:
    """``[1, C, 1, 2]``"""
    return torch.stack([vector(*means) - 1, vector(*means) + 1], dim=-1).view(1, len(means), 1, 2)


def assert_gates(function, means: Sequence[float], parameters: Sequence[Tensor], expected: Sequence[float], **options):
    x = map_with_means(*means)
    y = function(x, *parameters, **options)
    torch.testing.assert_close(y, x * vector(*expected).view(1, -1, 1, 1))


# ECA: z[c] = w0 m[c-1] + w1 m[c] + w2 m[c+1].


def test_eca_with_one_tap_gates_each_channel_by_itself():
    assert_gates(reference.eca, (L, 0, -L), [taps(1)], (0.75, 0.5, 0.25))


def test_eca_taps_run_from_the_channel_before_to_the_channel_after():
    # z = (0 - m1, m0 - m2, m1 - 0) = (-L, -L, L)
    assert_gates(reference.eca, (0, L, L), [taps(1, 0, -1)], (0.25, 0.25, 0.75))


def test_eca_circular_padding_joins_the_ends():
    # z = (m2 - m1, m0 - m2, m1 - m0) = (0, -L, L)
    assert_gates(reference.eca, (0, L, L), [taps(1, 0, -1)], (0.5, 0.25, 0.75), padding_mode="circular")


def test_eca_bias_adds_to_every_channel():
    assert_gates(reference.eca, (L, 0, -L), [taps(1), vector(L)], (0.9, 0.75, 0.5))


def test_eca_with_more_taps_than_channels():
    # Of the nine taps of channel 0, only those from the fifth on meet channels: z0 = 1 m0 + 2 m1, z1 = 3 m0 + 1 m1.
    assert_gates(reference.eca, (L, 0), [taps(0, 0, 0, 3, 1, 2, 0, 0, 0)], (0.75, 27 / 28))


def test_hard_sigmoid_is_a_clamped_line():
    # (z + 3) / 6 within [0, 1]
    assert_gates(reference.eca, (-4, -3, 0, 1.5, 9), [taps(1)], (0, 0, 0.5, 0.75, 1), gate="hard_sigmoid")


@pytest.mark.parametrize("spatial", [(4,), (2, 2), (1, 4), (2, 1, 2)], ids=str)
def test_the_mean_is_over_all_spatial_dimensions(spatial):
    x = (vector(L, -L).view(1, 2, 1) + vector(-3, -1, 1, 3)).view(1, 2, *spatial)
    y = reference.eca(x, taps(1))
    torch.testing.assert_close(y[0, 0], 0.75 * x[0, 0])
    torch.testing.assert_close(y[0, 1], 0.25 * x[0, 1])


def test_each_sample_has_its_own_gate():
    x = torch.cat([map_with_means(L), map_with_means(-L)])
    torch.testing.assert_close(reference.eca(x, taps(1)), x * vector(0.75, 0.25).view(2, 1, 1, 1))


def test_residual_is_added_before_the_activation():
    # x = (3, 5) has mean 4 and zero taps, so g = 1/2; (1.5 - 2, 2.5 + 1) = (-0.5, 3.5)
    x, residual = vector(3, 5).view(1, 1, 2), vector(-2, 1).view(1, 1, 2)
    call = {"residual": residual}
    torch.testing.assert_close(reference.eca(x, taps(0), **call).flatten(), vector(-0.5, 3.5))
    torch.testing.assert_close(reference.eca(x, taps(0), **call, activation="relu").flatten(), vector(0, 3.5))
    torch.testing.assert_close(reference.eca(-x, taps(0), activation="relu").flatten(), vector(0, 0))


def test_eca_gradients_by_hand():
    # One channel, x = (L - 1, L + 1), w = 1: m = L, g = 3/4, g (1 - g) = 3/16. With grad_y = (1, 0):
    # dg = x0 = L - 1, dz = 3/16 (L - 1), grad_w = dz m, and both positions of grad_x get dz w / 2 from the mean.
    x, w = map_with_means(L).requires_grad_(), taps(1).requires_grad_()
    reference.eca(x, w).backward(vector(1, 0).view_as(x))
    dz = 3 / 16 * (L - 1)
    torch.testing.assert_close(x.grad.flatten(), vector(0.75 + dz / 2, dz / 2))
    torch.testing.assert_close(w.grad.flatten(), vector(dz * L))


# Multi-kernel: p = softmax of (ln 2, 0, 0) = (1/2, 1/4, 1/4), from a mean of ln 2 or from the bias.


def test_multi_kernel_uses_centre_taps_only_and_mixes_by_the_means():
    # 9 marks the taps that must not act. Channel 0: 1/2 * 2 + 1/4 (1 - 1) = 1, z = ln 2, g = 2/3.
    # Channel 1: 1/2 * 0 + 1/4 (2 - 6) = -1, z = -ln 3, g = 1/4.
    weights = [
        torch.stack([vector(9, 2, 9), vector(9, 0, 9)]).unsqueeze(1),
        torch.stack([vector(9, 9, 1, 9, 9), vector(9, 9, 2, 9, 9)]).unsqueeze(1),
        torch.stack([vector(9, 9, 9, -1, 9, 9, 9), vector(9, 9, 9, -6, 9, 9, 9)]).unsqueeze(1),
    ]
    mix_weight = torch.stack([vector(1, 0), vector(0, 0), vector(0, 0)])
    parameters = [*weights, mix_weight, vector(0, 0, 0)]
    assert_gates(reference.multi_kernel_eca, (log(2), L), parameters, (2 / 3, 0.25))


CROSS = [
    taps(1, 0, 0),
    taps(0, 0, 0, 0, 1),
    taps(0, 0, 0, 0, 0, 0, 1),
    torch.zeros(3, 4).double(),
    vector(log(2), 0, 0),
]


def test_multi_kernel_cross_channel_convolves_across_channels():
    # z[c] = 1/2 m[c-1] + 1/4 m[c+2] + 1/4 m[c+3] = (L, 2L, L, 0)
    means, expected = (2 * L, 2 * L, 0, 4 * L), (0.75, 0.9, 0.75, 0.5)
    assert_gates(reference.multi_kernel_eca, means, CROSS, expected, cross_channel=True)


def test_multi_kernel_cross_channel_circular():
    # z = 1/2 (m3, m0, m1, m2) + 1/4 (m2, m3, m0, m1) + 1/4 (m3, m0, m1, m2) = (3L, 5L/2, 2L, L/2)
    means, expected = (2 * L, 2 * L, 0, 4 * L), [1 / (1 + 3**-power) for power in (3, 2.5, 2, 0.5)]
    options = {"cross_channel": True, "padding_mode": "circular"}
    assert_gates(reference.multi_kernel_eca, means, CROSS, expected, **options)


# Bidirectional: hidden = relu(m0), p = softmax(hidden, 0), which for m0 = L is (3/4, 1/4).


def bidirectional_parameters() -> list[Tensor]:
    network = [vector(1, 0, 0).view(1, 3), vector(0), vector(1, 0).view(2, 1), vector(0, 0)]
    return [taps(0, 1, 0), taps(1, 0, 0), *network]


def test_bidirectional_mixes_the_two_directions():
    # ahead = sigmoid(m) = (3/4, 1/4, 1/2); back = sigmoid(m[c+1]) = (1/4, 1/2, 1/2), the taps being reversed.
    # u = 3/4 ahead + 1/4 back = (5/8, 5/16, 1/2)
    expected = (5 / 8, 5 / 16, 1 / 2)
    call = (reference.bidirectional_eca, (L, -L, 0), bidirectional_parameters())
    assert_gates(*call, expected, final_sigmoid=False)
    assert_gates(*call, [1 / (1 + exp(-u)) for u in expected])


def test_bidirectional_network_has_a_relu():
    # m0 = -L, so hidden = 0 and p = (1/2, 1/2); ahead = (1/4, 3/4, 1/2), back = (3/4, 1/2, 1/2).
    call = (reference.bidirectional_eca, (-L, L, 0), bidirectional_parameters())
    assert_gates(*call, (1 / 2, 5 / 8, 1 / 2), final_sigmoid=False)


def test_bidirectional_circular_padding_joins_the_ends():
    # back = sigmoid(m1, m2, m0) = (1/4, 1/2, 3/4)
    call = (reference.bidirectional_eca, (L, -L, 0), bidirectional_parameters())
    assert_gates(*call, (5 / 8, 5 / 16, 9 / 16), final_sigmoid=False, padding_mode="circular")


def test_bidirectional_hard_sigmoid_replaces_all_three():
    # ahead = hard(1.5, 0, -3) = (3/4, 1/2, 0), back = hard(0, -3, 0) = (1/2, 0, 1/2), p = (1/2, 1/2)
    network = [torch.zeros(0, 3).double(), vector(), torch.zeros(2, 0).double(), vector(0, 0)]
    call = (reference.bidirectional_eca, (1.5, 0, -3), [taps(0, 1, 0), taps(1, 0, 0), *network])
    u = (5 / 8, 1 / 4, 1 / 4)
    assert_gates(*call, u, final_sigmoid=False, gate="hard_sigmoid")
    assert_gates(*call, [(v + 3) / 6 for v in u], gate="hard_sigmoid")


# The code that others wrote.

ORIGINALS = {
    "eca": (ECA, originals.EfficientChannelAttention),
    "multi_kernel": (MULTI_KERNEL, originals.DynamicMultiKernelECA),
    "bidirectional": (BIDIRECTIONAL, originals.BidirectionalECA),
}


def assert_same_gradients(module: nn.Module, function, x: Tensor, **options) -> None:
    """Equal outputs and gradients from ``module`` and from ``function`` with the module's parameters, in float64."""
    module.double()
    inputs = [x.requires_grad_(), *module.parameters()]
    grad_y = make_x(x.shape, x.dtype, seed=3)
    theirs, ours = ([y, *torch.autograd.grad(y, inputs, grad_y)] for y in (module(x), function(*inputs, **options)))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("c", [4, 15, 48, 256])
@pytest.mark.parametrize("variant, original", ORIGINALS.values(), ids=ORIGINALS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_reference_is_the_original(variant, original, c):
    assert_same_gradients(original(c), variant.reference, make_x((2, c, 3, 5), torch.float64))


@pytest.fixture
def timm_layers():
    return pytest.importorskip("timm.layers")


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_reference_is_timm_ecamodule(kernel_size, timm_layers):
    x = make_x((2, 24, 3, 5), torch.float64)
    assert_same_gradients(timm_layers.EcaModule(kernel_size=kernel_size), reference.eca, x)
    hard = timm_layers.EcaModule(kernel_size=kernel_size, gate_layer="hard_sigmoid")
    assert_same_gradients(hard, reference.eca, x, gate="hard_sigmoid")


@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_reference_is_timm_cecamodule(kernel_size, timm_layers):
    x = make_x((2, 24, 3, 5), torch.float64)
    assert_same_gradients(timm_layers.CecaModule(kernel_size=kernel_size), reference.eca, x, padding_mode="circular")


@pytest.mark.skipif(not SEED.exists(), reason="../shared/seed.py lies outside the repository")
def test_originals_are_the_seed_statement_by_statement():
    ours, theirs = (ast.parse(Path(path).read_text()) for path in (originals.__file__, SEED))
    assert ast.dump(ast.Module(ours.body[1:], [])) == ast.dump(ast.Module(theirs.body[1:], []))
