# SPDX-License-Identifier: MIT
"""Tools that walk the graph of autograd or record a trace: torch-pruning, torchviz, TensorBoard, TorchScript, ONNX."""

import io

import pytest
import torch
from tools import C, assert_same, images, original, ours, three, ways
from torch import nn

import eca_cuda
from eca_cuda.testing import VARIANTS, make_x

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_nodes_have_a_name_and_save_tensors_only(variant, activation):
    x = make_x((2, C, 4, 4)).requires_grad_()
    y = variant.function(x, *variant.make_parameters(C, torch.float32), residual=x, activation=activation)
    assert y.grad_fn.name() == type(y.grad_fn).__name__ == "_FusedBackward"
    assert all(isinstance(t, torch.Tensor) for t in y.grad_fn.saved_tensors)


@three
@ways
def test_torchviz_draws_the_parameters(name, way):
    torchviz = pytest.importorskip("torchviz", reason="torchviz is not installed")
    model = ours(original(name), way)
    drawn = torchviz.make_dot(model(images()), params=dict(model.named_parameters()), show_saved=True).source
    assert all(name in drawn for name, p in model.named_parameters() if p.numel())


@three
@ways
@pytest.mark.parametrize("gradients", [True, False])
def test_a_trace_is_saved_loaded_and_trained(name, way, gradients):
    expected = original(name)
    model, file = ours(expected, way), io.BytesIO()
    with torch.set_grad_enabled(gradients):
        torch.jit.save(torch.jit.trace(model, images()), file)
    file.seek(0)
    assert_same(torch.jit.load(file), expected, images(7))


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_a_trace_of_lengths_and_options_holds_for_other_sizes():
    layer = eca_cuda.EfficientChannelAttention(C, padding_mode="circular", bias=True).requires_grad_(False)
    example, x, lengths = make_x((2, C, 9)), make_x((3, C, 5)), torch.tensor([1, 5, 2])
    traced = torch.jit.trace(layer, (example, example))
    torch.testing.assert_close(traced(x, x), layer(x, x))
    traced = torch.jit.trace(lambda x, lengths: layer(x, lengths=lengths), (example, torch.tensor([3, 9])))
    torch.testing.assert_close(traced(x, lengths), layer(x, lengths=lengths))


@three
@ways
def test_torchscript_is_refused_with_advice(name, way):
    model = ours(original(name), way)
    with pytest.raises((TypeError, RuntimeError), match=r"torch\.jit\.script: .*(torch\.jit\.trace|revert)"):
        torch.jit.script(model)


@three
@ways
def test_tensorboard_adds_the_graph(name, way, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_graph(ours(original(name), way), images())
    assert any(path.stat().st_size > 1000 for path in tmp_path.iterdir())


@three
@ways
@pytest.mark.filterwarnings("ignore:.*")
def test_the_first_onnx_exporter_gives_plain_operators(name, way, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model, path, x = ours(original(name).eval(), way), str(tmp_path / "model.onnx"), images(3)
    torch.onnx.export(model, (images(),), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}})
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach())


CHANNELS = {"conv3": 0, "conv5": 0, "conv7": 0, "weight_net.0": 1, "gate.0": 1}  # the dimension of the weight


@three
def test_torch_pruning_with_a_pruner_for_the_layer(name):
    """The pruner of docs/tools.md. Without it, the tool cannot prune the originals of two variants."""
    tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")

    class AttentionPruner(tp.BasePruningFunc):
        def prune_out_channels(self, layer, indices):
            keep = [i for i in range(layer.channels) if i not in set(indices)]
            layer.channels = len(keep)
            for path, m in layer.named_modules():
                if path in CHANNELS:
                    m.weight = nn.Parameter(m.weight.detach().index_select(CHANNELS[path], torch.tensor(keep)))
                if path in ("conv3", "conv5", "conv7"):
                    m.in_channels = m.out_channels = m.groups = len(keep)
            return layer

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer):
            return layer.channels

        get_in_channels = get_out_channels

    model, layer = ours(original(name), "own"), getattr(eca_cuda, name)
    graph = tp.DependencyGraph()
    graph.build_dependency(model, example_inputs=images(), customized_pruners={layer: AttentionPruner()})
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, idxs=[1, 5])
    assert graph.check_pruning_group(group)
    group.prune()
    assert (model[0].out_channels, model[1].channels, model[3].in_features) == (C - 2, C - 2, 9 * (C - 2))
    assert model[1]._is_plain()
    model(images()).sum().backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
