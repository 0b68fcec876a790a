# SPDX-License-Identifier: MIT
"""Tools that replace submodules, their weights or their forward: PEFT, quantisation, accelerate."""

import copy

import originals
import pytest
import torch
from tools import NAMES, C, assert_same, gradients, images, original, ours, ways
from torch import nn

import eca_cuda
from eca_cuda.testing import make_x

pytestmark = pytest.mark.filterwarnings("ignore:.*quantiz.*:DeprecationWarning", "ignore:.*Enum.*")

TARGETS = {
    "EfficientChannelAttention": ["conv1"],
    "DynamicMultiKernelECA": ["weight_net.0"],  # LoRA refuses grouped convolutions, also in the original
    "BidirectionalECA": ["conv_forward", "conv_backward", "gate.0", "gate.2"],
}


@pytest.mark.parametrize("name, target", [(name, t) for name, targets in TARGETS.items() for t in targets])
@ways
def test_lora_acts_trains_and_merges(name, target, way):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    x, expected = images(), original(name)
    models = {}
    for key, model in {"expected": copy.deepcopy(expected), way: ours(expected, way)}.items():
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, target_modules=[f"1.{target}"], init_lora_weights=False)
        models[key] = peft.get_peft_model(model, config)
    model = models[way]
    assert_same(model, models["expected"], x)
    trained = gradients(model, x)
    assert len(trained) == 2 and all(g.count_nonzero() for g in trained.values())
    y = model(x)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected(x))
        assert not torch.equal(model(x), y)
    torch.testing.assert_close(model.merge_and_unload()(x), y)


@pytest.mark.parametrize("name", NAMES)
@ways
def test_dynamically_quantised(name, way):
    expected = original(name).eval()
    model, x = ours(expected, way), images()

    def quantised(m: nn.Module) -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8)

    torch.testing.assert_close(quantised(model)(x), quantised(expected)(x))


# BidirectionalECA's hidden layer of 16 channels has one neuron, which torchao 0.18 can't quantise; 32 have two.
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("name, c", [("DynamicMultiKernelECA", C), ("BidirectionalECA", 2 * C)])
@ways
def test_quantised_by_torchao(name, c, config, way):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    expected = getattr(originals, name)(c)
    model, x = ours(nn.ModuleList([nn.Identity(), expected]), way, c)[1], make_x((2, c, 3, 5)).requires_grad_()
    for m in (model, expected):
        quantization.quantize_(m, getattr(quantization, config)())
    assert_same(model, expected, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected(x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected(x))


def test_a_function_takes_torchaos_weights():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    layer, x = eca_cuda.DynamicMultiKernelECA(C), make_x((2, C, 3, 5))
    quantised = copy.deepcopy(layer.weight_net)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    parameters = [layer.conv3.weight, layer.conv5.weight, layer.conv7.weight, quantised[0].weight, quantised[0].bias]
    layer.weight_net = quantised
    torch.testing.assert_close(eca_cuda.multi_kernel_eca(x, *parameters), layer(x))


@pytest.mark.parametrize("name", NAMES)
@ways
def test_offloaded_by_accelerate(name, way, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    expected, x = original(name).eval(), images()
    for offload in (accelerate.cpu_offload, lambda m, cpu: accelerate.disk_offload(m, str(tmp_path), cpu)):
        model = ours(expected, way)
        offload(model, torch.device("cpu"))
        assert {p.device.type for p in model.parameters()} == {"meta"}
        torch.testing.assert_close(model(x), expected(x))
    accelerate.hooks.remove_hook_from_module(model, recurse=True)


@pytest.mark.parametrize("name", NAMES)
@ways
def test_dispatched_by_accelerate(name, way, tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    expected, x = original(name).eval(), images()
    devices = {"0": "cpu", "1": "disk", "2": "cpu", "3": "cpu"}
    model = accelerate.dispatch_model(ours(expected, way), devices, main_device="cpu", offload_dir=str(tmp_path))
    torch.testing.assert_close(model(x), expected(x))
