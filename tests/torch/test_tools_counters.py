# SPDX-License-Identifier: MIT
"""Tools that count parameters and operations give the numbers of the original."""

import pytest
from tools import C, images, original, ours, three, ways
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Our layers have no nn.AdaptiveAvgPool2d, which some tools count as one operation per element of x.
POOLED = C * 9


def pooled(way: str, each: int) -> int:
    return each if way == "own" else 0


@three
@ways
def test_thop(name, way):
    thop = pytest.importorskip("thop", reason="thop is not installed")
    expected = original(name)
    model = ours(expected, way)
    operations, parameters = thop.profile(expected, (images(),), verbose=False)
    assert thop.profile(model, (images(),), verbose=False) == (operations - pooled(way, 4 * (POOLED + C)), parameters)


@three
@ways
def test_torchinfo(name, way):
    torchinfo = pytest.importorskip("torchinfo", reason="torchinfo is not installed")
    counted = [
        torchinfo.summary(model, input_data=images(), verbose=0)
        for model in (original(name), ours(original(name), way))
    ]
    assert len({(c.total_mult_adds, c.total_params, c.trainable_params) for c in counted}) == 1


@three
@ways
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_fvcore(name, way):
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    expected, model = (
        fvcore.FlopCountAnalysis(m, images()).unsupported_ops_warnings(False)
        for m in (original(name), ours(original(name), way))
    )
    operators = expected.by_operator()
    assert operators["conv"] and operators["linear"]
    if way == "own":
        assert operators.pop("adaptive_avg_pool2d") == 4 * POOLED
    assert model.by_operator() == operators
    assert model.by_module()["1"] == expected.by_module()["1"] - pooled(way, 4 * POOLED)


@three
@ways
def test_ptflops(name, way):
    ptflops = pytest.importorskip("ptflops", reason="ptflops is not installed")
    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    expected = original(name)
    found = ptflops.get_model_complexity_info(ours(expected, way), (3, 5, 5), **options)
    operations, parameters = ptflops.get_model_complexity_info(expected, (3, 5, 5), **options)
    assert found == (operations - pooled(way, 2 * POOLED), parameters)


@three
@ways
def test_flop_counter_mode(name, way):
    counted = []
    for model in (original(name), ours(original(name), way)):
        with FlopCounterMode(display=False) as counter:
            model(images())
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1]


@three
@ways
def test_a_forward_hook_of_all_modules_sees_each_submodule(name, way):
    seen: list[type[nn.Module]] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        ours(original(name), way)(images())
    finally:
        handle.remove()
    assert {nn.Conv1d, nn.Sigmoid} <= set(seen)
