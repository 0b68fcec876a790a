# SPDX-License-Identifier: MIT
"""Checkpoints, optimizers, averages, wrappers, compilers and tracers keep working after ``convert``.

In float64, where a few steps of training accumulate far less rounding than any other error.
"""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

import eca_cuda
from eca_cuda import compile_mode, convert, revert

timm = pytest.importorskip("timm")
from timm.utils import ModelEmaV2, ModelEmaV3
from torchvision.models.feature_extraction import create_feature_extractor

WAYS = [{}, {"fuse_residual": True}, {"fuse_residual": True, "fuse_norm": True}]
every_way = pytest.mark.parametrize("options", WAYS, ids=lambda options: ", ".join(options) or "attention")


def make_model() -> nn.Module:
    """A narrow ResNet with 8 blocks and random gains, in float64."""
    torch.manual_seed(0)
    model = timm.create_model("ecaresnet26t", num_classes=10, base_width=16, channels=(16, 24, 32, 48), stem_width=8)
    with torch.no_grad():
        for p in model.parameters():
            if not p.count_nonzero():
                p.uniform_(0.1, 0.5)
    return model.double()


def images(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = model(images(step)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def assert_close(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-7, atol=1e-9)


@every_way
def test_training_goes_on_with_the_same_optimizer(options):
    """Two steps before conversion, two after it, one after reverting, against a model that is never converted."""
    model, plain = make_model(), make_model()
    optimizer, of_plain = optimizer_of(model), optimizer_of(plain)
    losses = train(model, optimizer, range(2))
    momentum = {p: optimizer.state[p]["momentum_buffer"] for p in model.parameters()}
    convert(model, **options)
    assert all(optimizer.state[p]["momentum_buffer"] is momentum[p] for p in model.parameters())
    losses += train(model, optimizer, range(2, 4))
    revert(model)
    losses += train(model, optimizer, range(4, 5))
    torch.testing.assert_close(losses, train(plain, of_plain, range(5)), rtol=1e-7, atol=1e-9)
    assert_close(model, plain)


@every_way
def test_checkpoints_load_both_ways(options):
    plain, converted = make_model(), convert(make_model(), **options)
    train(converted, optimizer_of(converted), range(1))
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    x = images()
    torch.testing.assert_close(plain.eval()(x), converted.eval()(x), rtol=1e-7, atol=1e-9)
    converted.load_state_dict(make_model().state_dict())
    torch.testing.assert_close(converted(x), make_model().eval()(x), rtol=1e-7, atol=1e-9)


@every_way
@pytest.mark.parametrize("average", [ModelEmaV2, ModelEmaV3, AveragedModel])
def test_averages_follow_and_run(average, options):
    """An average made before conversion and one made after it, both updated from the converted model."""
    model = make_model()
    before = average(model)
    convert(model, **options)
    after = average(model)
    assert type(after.module.layer1[0]) is type(model.layer1[0])
    train(model, optimizer_of(model), range(2))
    for ema in (before, after):
        (ema.update_parameters if average is AveragedModel else ema.update)(model)
        if average is AveragedModel:  # the first update copies
            torch.testing.assert_close(dict(ema.module.named_parameters()), dict(model.named_parameters()))
    x = images()
    torch.testing.assert_close(before.module.eval()(x), after.module.eval()(x), rtol=1e-7, atol=1e-9)


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_way
@pytest.mark.parametrize("when", ["before wrapping", "after wrapping"])
def test_distributed_data_parallel_trains_alike(when, options, process_group):
    model, plain = make_model(), make_model()
    if when == "before wrapping":
        wrapped = nn.parallel.DistributedDataParallel(convert(model, **options))
    else:
        wrapped = convert(nn.parallel.DistributedDataParallel(model), **options)
    losses = train(wrapped, optimizer_of(wrapped), range(3))
    torch.testing.assert_close(losses, train(plain, optimizer_of(plain), range(3)), rtol=1e-7, atol=1e-9)
    assert_close(wrapped.module, plain)


@every_way
def test_fsdp2_trains_alike(options, process_group):
    """`fully_shard` after convert replaces parameters; the layers use the current ones."""
    model, plain = convert(make_model(), **options), make_model()
    mesh = init_device_mesh("cpu", (1,))
    for block in (*model.layer1, *model.layer4):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    losses = train(model, optimizer_of(model), range(3))
    torch.testing.assert_close(losses, train(plain, optimizer_of(plain), range(3)), rtol=1e-7, atol=1e-9)
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in model.state_dict().items()}
    torch.testing.assert_close(whole, plain.state_dict(), rtol=1e-7, atol=1e-9)


@every_way
def test_revert_after_fully_shard_is_refused_as_a_whole(options, process_group):
    model = convert(make_model(), **options)
    block = model.layer4[0] if options else model.layer4[0].se
    fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
    kinds = {path: type(m) for path, m in model.named_modules()}
    with pytest.raises(
        RuntimeError, match=rf"layer4\.0\S* became a {type(block).__name__} after convert; revert before fully_"
    ):
        revert(model)
    assert {path: type(m) for path, m in model.named_modules()} == kinds


@every_way
def test_mixed_precision_steps_with_the_scaler(options):
    """Float16 autocast with float32 parameters: eager's dtype, finite gradients, and a step that is not skipped."""
    model = convert(make_model().float(), **options)
    before, x = copy.deepcopy(model.state_dict()), images().float()
    optimizer, scaler = optimizer_of(model), torch.amp.GradScaler("cpu", init_scale=2.0**4)
    with torch.autocast("cpu", dtype=torch.float16):
        y = model(x)
        assert y.dtype == revert(copy.deepcopy(model))(x).dtype
    scaler.scale(y.float().square().mean()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**4
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])]


@every_way
def test_optimizer_states_load_both_ways(options):
    """Adam's state, saved by a converted model and loaded by an unconverted one, and back."""

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.001)

    losses = {}
    for order in ((True, False, True), (False, False, False)):
        state, of_optimizer, seen = make_model().state_dict(), None, []
        for step, converted in enumerate(order):
            model = convert(make_model(), **options) if converted else make_model()
            model.load_state_dict(state)
            optimizer = adam(model)
            if of_optimizer is not None:
                optimizer.load_state_dict(of_optimizer)
            seen += train(model, optimizer, range(step, step + 1))
            state, of_optimizer = model.state_dict(), optimizer.state_dict()
        losses[order] = seen
    torch.testing.assert_close(*losses.values(), rtol=1e-7, atol=1e-9)


@every_way
def test_compile_gives_one_graph_and_trains_alike(options):
    torch.compiler.reset()
    model, plain = convert(make_model(), **options), make_model()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    losses = train(compiled, optimizer_of(model), range(3))
    torch.testing.assert_close(losses, train(plain, optimizer_of(plain), range(3)), rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(images()), plain.eval()(images()), rtol=1e-7, atol=1e-9)


def test_converting_a_compiled_model_recompiles_it():
    torch.compiler.reset()
    model, names = make_model().eval(), []

    def backend(graph, _):
        names.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    with torch.no_grad(), compile_mode("fused"):
        expected = compiled(images())
        torch.testing.assert_close(convert(compiled)(images()), expected, rtol=1e-7, atol=1e-9)
    assert not any("eca_cuda" in name for name in names[0]) and any("eca_cuda" in name for name in names[-1])


@every_way
def test_gradient_checkpointing_gives_the_same_gradients(options):
    model = convert(make_model().eval(), **options)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        grads.append(torch.autograd.grad(model(images()).square().sum(), list(model.parameters())))
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)


@every_way
def test_export_gives_what_eager_gives(options):
    model = convert(make_model().eval(), **options)
    with torch.no_grad():
        exported = torch.export.export(model, (images(),))
        torch.testing.assert_close(exported.module()(images()), model(images()), rtol=1e-7, atol=1e-9)


@every_way
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_without_gradients_is_saved(options):
    model, file = convert(make_model().eval(), **options), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, images()), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(images(1)), model(images(1)), rtol=1e-7, atol=1e-9)


@every_way
def test_fx_traces_the_whole_model(options):
    """timm's and torchvision's feature extractors rely on this."""
    model = convert(make_model(), **options)
    traced = torch.fx.symbolic_trace(model)
    assert sum(node.target is eca_cuda.eca for node in traced.graph.nodes) == 8
    grads = [torch.autograd.grad(m(images()).square().sum(), list(model.parameters())) for m in (model, traced)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-9)
    features = create_feature_extractor(model.eval(), ["layer2.1", "layer4.0"])(images())
    assert [f.shape[1] for f in features.values()] == [
        model.layer2[1].bn3.num_features,
        model.layer4[0].bn3.num_features,
    ]


@every_way
def test_a_copy_trains_independently_of_its_source(options):
    model = convert(make_model(), **options)
    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    train(other, optimizer_of(other), range(1))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(other.conv1[0].weight, model.conv1[0].weight)
