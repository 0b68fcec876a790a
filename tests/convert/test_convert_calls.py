# SPDX-License-Identifier: MIT
"""Calls that differ from the trial (arguments, mixed dtypes, autocast, one channel) give the same as before."""

import pytest
import torch
import torch.nn.functional as F
from disguises import ECA
from lookalikes import eca_layer
from originals import DynamicMultiKernelECA
from test_convert_forms import gradients
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

from eca_cuda import convert, functional
from eca_cuda.conversion.fused_attention import FusedAttention
from eca_cuda.conversion.trial import under_autocast
from eca_cuda.testing import make_x

SHAPE = (3, 16, 5, 7)


class Masked(ECA):
    def forward(self, x, mask=None):
        return super().forward(x) if mask is None else super().forward(x * mask)


class MaskedIfTensor(ECA):
    def forward(self, x, mask=None):
        return super().forward(x) * mask if isinstance(mask, Tensor) else super().forward(x)


class Switched(ECA):
    def forward(self, x, mode="multiply"):
        return x + self.gate(x) if mode == "add" else x * self.gate(x)


class Keywords(ECA):
    def forward(self, x, *, scale=1, **others):
        return super().forward(x) * 2 if scale == 2 or others.get("twice") else super().forward(x)


class More(ECA):
    def forward(self, features, *others):
        return super().forward(features) * others[0] if others else super().forward(features)


class AlsoX(ECA):
    """Its second argument is called ``x`` and is not read."""

    def forward(self, features, x=None):
        return super().forward(features)


class InItsCall(ECA):
    """``forward`` returns the gate, and ``__call__`` multiplies."""

    def forward(self, x):
        return self.gate(x).expand_as(x)

    def __call__(self, x):
        return x * super().__call__(x)


MASK = make_x(SHAPE, seed=5)
CALLS = {
    "a mask": (Masked, (MASK,), {}),
    "a mask by keyword": (Masked, (), {"mask": MASK}),
    "a mask among other things": (MaskedIfTensor, (MASK,), {}),
    "a mode": (Switched, ("add",), {}),
    "a keyword": (Keywords, (), {"scale": 2}),
    "any keyword": (Keywords, (), {"twice": True}),
    "any argument": (More, (2.0,), {}),
}


@pytest.fixture
def fused_calls(monkeypatch):
    """Records the calls of the fused functions."""
    calls = []
    for name in ("eca", "multi_kernel_eca"):
        function = getattr(functional, name)
        monkeypatch.setattr(
            functional, name, lambda *a, function=function, **k: calls.append(function) or function(*a, **k)
        )
    return calls


def both(make) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    return plain, convert(make())


@pytest.mark.parametrize("make, others, by_name", CALLS.values(), ids=CALLS)
def test_an_argument_that_matters_is_passed_on(make, others, by_name, fused_calls):
    plain, converted = both(make)
    x = make_x(SHAPE).requires_grad_()
    y, expected = converted(x, *others, **by_name), plain(x, *others, **by_name)
    assert isinstance(converted, FusedAttention) and not fused_calls and torch.equal(y, expected)
    torch.testing.assert_close(gradients(converted, y, x), gradients(plain, expected, x), rtol=0, atol=0)
    torch.testing.assert_close(converted(x), plain(x))
    assert len(fused_calls) == 1


@pytest.mark.parametrize(("make", "name"), [(Masked, "x"), (AlsoX, "features")], ids=["x", "features"])
def test_x_may_be_given_by_name(make, name, fused_calls):
    plain, converted = both(make)
    torch.testing.assert_close(converted(**{name: MASK}), plain(MASK))
    assert len(fused_calls) == 1


class Falls(ECA):
    def forward(self, x, fallback=None):
        return fallback if x is None else super().forward(x)


def test_x_may_be_none():
    plain, converted = both(Falls)
    assert converted(None) is plain(None) is None and converted(None, MASK) is MASK and converted(None, fallback=3) == 3
    with pytest.raises(TypeError, match="multiple values"):
        converted(MASK, x=MASK)


@pytest.mark.parametrize(("make", "name"), [(Masked, "mask"), (AlsoX, "x")], ids=["read", "unread"])
def test_an_argument_may_be_its_default_or_unread(make, name, fused_calls):
    plain, converted = both(make)
    given = None if make is Masked else MASK
    torch.testing.assert_close(converted(MASK, given), plain(MASK, given))
    torch.testing.assert_close(converted(MASK, **{name: given}), plain(MASK, **{name: given}))
    assert len(fused_calls) == 2


def in_float32(m, x, gate):
    x = x.float()
    return x * gate(x)


def gate_in_float32(m, x, gate):
    return x * gate(x.float())


def of_the_weights(m, x, gate):
    x = x.to(m.conv.weight.dtype)
    return x * gate(x)


def like_the_weights(m, x, gate):
    return (
        x
        * F.conv1d(x.mean((2, 3))[:, None].type_as(m.conv.weight), m.conv.weight, padding=1).sigmoid()[
            :, 0, :, None, None
        ]
    )


OF_ANOTHER_DTYPE = (in_float32, gate_in_float32, of_the_weights, like_the_weights)


@pytest.mark.filterwarnings("ignore:convert. no attention")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("change", OF_ANOTHER_DTYPE)
def test_a_change_of_half_to_float32_is_kept(change, dtype):
    plain, converted = both(lambda: ECA(change))
    assert converted(make_x(SHAPE, dtype)).dtype == plain(make_x(SHAPE, dtype)).dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        y, expected = (m(make_x(SHAPE, dtype)) for m in (converted, plain))
    assert y.dtype == expected.dtype and torch.equal(y, expected)


def by_einsum(m, x, gate):
    return torch.einsum("nchw,nc->nchw", x, gate(x).flatten(1))


def by_exponential(m, x, gate):
    return x * (1 / (1 + torch.exp(-m.logits(x))))


def by_keywords(m, x, gate):
    z = F.conv1d(input=x.mean((2, 3))[:, None], weight=m.conv.weight, padding=1)[:, 0]
    return x * (1 / (1 + torch.exp(input=-z)))[:, :, None, None]


# The dtypes of x that y keeps under autocast; bfloat16 stands for autocast's dtype.
UNDER_AUTOCAST = {
    "ECA": (lambda: eca_layer(16), (torch.float32, torch.bfloat16)),
    "product by einsum": (lambda: ECA(by_einsum), (torch.bfloat16,)),
    "exponential, which CUDA computes in float32": (lambda: ECA(by_exponential), (torch.float32,)),
    "the same by keywords": (lambda: ECA(by_keywords), (torch.float32,)),
    "sums and softmax, which CUDA computes in float32": (lambda: DynamicMultiKernelECA(16), (torch.float32,)),
}


@pytest.mark.parametrize("make, kept", UNDER_AUTOCAST.values(), ids=UNDER_AUTOCAST)
def test_autocast_runs_its_own_forward_where_the_dtype_would_differ(make, kept, fused_calls):
    plain, converted = both(make)
    assert converted._eca_cuda.found.under_autocast == kept
    for autocast in (torch.float16, torch.bfloat16):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            before = len(fused_calls)
            with torch.autocast("cpu", dtype=autocast):
                y, expected = converted(make_x(SHAPE, dtype)), plain(make_x(SHAPE, dtype))
            is_kept = dtype in kept if dtype == torch.float32 else dtype == autocast and torch.bfloat16 in kept
            assert y.dtype == expected.dtype and len(fused_calls) - before == is_kept
            torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")
@pytest.mark.parametrize("make", [ECA, lambda: DynamicMultiKernelECA(16), lambda: ECA(by_keywords)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_dtype_under_cudas_autocast_is_torchs_own(make, dtype):
    """Fake CUDA tensors go through CUDA's autocast without a GPU."""
    _, converted = both(make)
    with FakeTensorMode(), torch.device("cuda"):
        module, x = make(), torch.empty(SHAPE, dtype=dtype)
        with under_autocast("cuda"):
            y = module(x)
    assert (y.dtype == dtype) == (dtype in converted._eca_cuda.found.under_autocast)


def through_a_squeeze(m, x, gate):
    """Removes the dimension of a single channel, and then convolves over samples."""
    logits = m.conv(x.mean((2, 3)).squeeze(1).unsqueeze(-2)).squeeze(1)
    return x * logits.view(x.size(0), x.size(1), 1, 1).sigmoid()


def test_a_single_channel_runs_its_own_forward(fused_calls):
    plain, converted = both(lambda: ECA(through_a_squeeze))
    assert isinstance(converted, FusedAttention)
    x = make_x((7, 1, 4, 4))
    assert torch.equal(converted(x), plain(x)) and not fused_calls
    torch.testing.assert_close(converted(MASK), plain(MASK))
    assert len(fused_calls) == 1


@pytest.mark.filterwarnings("ignore:convert. no attention")
def test_only_the_forward_is_tried_and_not_the_call():
    plain, converted = both(InItsCall)
    assert torch.equal(converted(MASK), plain(MASK))


@pytest.mark.parametrize("kernel_size", range(1, 33, 2))
def test_every_kernel_size_is_converted(kernel_size):
    """Where all gates are close to zero, their relative error is that of the logits."""

    class WithKernel(ECA):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=kernel_size % 4 == 1)

    assert isinstance(convert(WithKernel()), FusedAttention)


def product_of_sizes(m, x, gate):
    means = x.reshape(*x.shape[:2], x.shape[2:].numel()).mean(-1)
    return x * m.act(m.conv(means[:, None]))[:, 0, :, None, None]


def in_a_list(m, x, gate):
    pool, conv, act = m.layers
    return x * act(conv(pool(x).squeeze(-1).transpose(1, 2)).transpose(1, 2).unsqueeze(-1))


class InAList(nn.Module):
    def __init__(self):
        super().__init__()
        conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.layers = nn.ModuleList([nn.AdaptiveAvgPool2d(1), conv, nn.Sigmoid()])

    def forward(self, x):
        return in_a_list(self, x, None)


SPELLINGS = {
    "product of sizes": lambda: ECA(product_of_sizes),
    "reciprocal": lambda: ECA(by_exponential),
    "layers in a list": InAList,
}


@pytest.mark.parametrize("make", SPELLINGS.values(), ids=SPELLINGS)
def test_these_spellings_are_recognised(make, fused_calls):
    plain, converted = both(make)
    torch.testing.assert_close(converted(MASK), plain(MASK))
    assert len(fused_calls) == 1


NORMS = (nn.utils.weight_norm, nn.utils.spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: f"{norm.__module__.split('.')[-1]}.{norm.__name__}")
def test_a_weight_that_torch_computes_is_fused(norm, fused_calls):
    def make():
        module = ECA()
        norm(module.conv)
        return module

    plain, converted = both(make)
    for training in (True, False):
        plain.train(training), converted.train(training)
        torch.testing.assert_close(converted(MASK), plain(MASK))
    torch.testing.assert_close(converted.state_dict(), plain.state_dict())
    assert len(fused_calls) == 2
