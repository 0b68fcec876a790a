# SPDX-License-Identifier: MIT
"""What torch does to modules works on these: copies, casts, functional calls, pruning and reparametrisation."""

import copy
import io
import pickle

import originals
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import eca_cuda
from eca_cuda.testing import VARIANTS, make_x

NAMES = [name for variant in VARIANTS if hasattr(originals, name := variant.module.__name__)]


def ours(name: str) -> nn.Module:
    return getattr(eca_cuda, name)(64)


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def copies(layer: nn.Module) -> dict[str, nn.Module]:
    return {"deepcopy": copy.deepcopy(layer), "pickle": pickle.loads(pickle.dumps(layer))}


@pytest.mark.parametrize("name", NAMES)
def test_copies_are_equal_and_share_nothing(name):
    layer, x = ours(name), make_x((2, 64, 3, 5))
    expected = layer(x)
    for made in copies(layer).values():
        assert_same_state(made, layer)
        assert repr(made) == repr(layer)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(1)
        assert not torch.equal(made(x), expected)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_two_layers_share_no_state(name):
    a, b = ours(name), ours(name)
    assert not {p.data_ptr() for p in a.parameters()} & {p.data_ptr() for p in b.parameters()}
    assert all(isinstance(value, nn.Parameter) for value in a.state_dict(keep_vars=True).values())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_survives_a_weights_only_load(name):
    layer, file = ours(name), io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = ours(name)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(other, layer)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_to_dtype_converts_and_runs(name, dtype):
    layer = ours(name).to(dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(make_x((2, 64, 3, 5), dtype)).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_train_and_eval_compute_the_same(name):
    layer, x = ours(name), make_x((2, 64, 3, 5))
    trained = layer.train()(x)
    assert torch.equal(layer.eval()(x), trained)
    with torch.inference_mode():
        assert torch.equal(layer(x), trained)


@pytest.mark.parametrize("name", NAMES)
def test_functional_call_uses_the_parameters_it_is_given(name):
    layer, other, x = ours(name), ours(name), make_x((2, 64, 3, 5))
    assert torch.equal(torch.func.functional_call(layer, dict(other.named_parameters()), x), other(x))


@pytest.mark.parametrize("name", NAMES)
def test_parameter_vectors_are_written_back(name):
    layer, x = ours(name), make_x((2, 64, 3, 5))
    vector = nn.utils.parameters_to_vector(layer.parameters())
    expected = layer(x)
    nn.utils.vector_to_parameters(2 * vector, layer.parameters())
    assert not torch.equal(layer(x), expected)
    nn.utils.vector_to_parameters(vector, layer.parameters())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_clipped(name):
    layer = ours(name)
    layer(make_x((2, 64, 3, 5))).square().sum().backward()
    assert nn.utils.clip_grad_norm_(layer.parameters(), 0.5) > 0.5
    assert nn.utils.get_total_norm([p.grad for p in layer.parameters()]) <= 0.5


# Reparametrisation: torch.nn.utils computes weights in hooks of submodules, which take effect without calling those.

WITH_WEIGHTS = [
    (name, submodule) for name in NAMES for submodule, m in ours(name).named_modules() if hasattr(m, "weight")
]
REPARAMETRISATIONS = {
    "prune": lambda m: prune.l1_unstructured(m, "weight", amount=1),
    "prune-random": lambda m: prune.random_unstructured(m, "weight", amount=0.3),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old-weight_norm": nn.utils.weight_norm,
    "old-spectral_norm": nn.utils.spectral_norm,
}


def weight_after_a_call(m: nn.Module) -> Tensor:
    """The weight that ``m`` itself would use."""
    m(torch.zeros(1, m.in_channels, 1) if isinstance(m, nn.Conv1d) else torch.zeros(1, m.in_features))
    return m.weight


@pytest.mark.parametrize("how", REPARAMETRISATIONS)
@pytest.mark.parametrize("name, submodule", WITH_WEIGHTS)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated", "ignore:.*spectral_norm.* is deprecated")
def test_reparametrised_weights_act_and_get_gradients(name, submodule, how):
    """Compared with a plain layer with the recomputed weight, before and after a step of the underlying parameters."""
    layer, plain, x = ours(name), ours(name), make_x((2, 64, 3, 5))
    plain.load_state_dict(layer.state_dict())
    target = layer.get_submodule(submodule)
    REPARAMETRISATIONS[how](target)
    layer.eval()  # in training, spectral_norm changes its state at each call
    sources = [p for key, p in target.named_parameters() if "weight" in key]
    for _ in range(2):
        y = layer(x)
        assert any(g.count_nonzero() for g in torch.autograd.grad(y.square().sum(), sources))
        with torch.no_grad():
            plain.get_submodule(submodule).weight.copy_(weight_after_a_call(target))
            torch.testing.assert_close(y, plain(x))
            for p in sources:
                p.add_(torch.randn_like(p), alpha=0.1)
