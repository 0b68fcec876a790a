# SPDX-License-Identifier: MIT
"""The examples, in a small form, show what they claim, and fail if the kernels are wrong."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

import eca_cuda
from eca_cuda.testing import VARIANTS

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import complexity
import digits
import photographs
from _models import eca_resnet50
from matplotlib import image

CHANCE = 0.1
SMALL = {"digits": ["--samples", "100", "--epochs", "1"], "photographs": ["--size", "32", "--rounds", "1"]}


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def comparison(request: pytest.FixtureRequest, device: str) -> digits.Comparison:
    return digits.compare(request.param, epochs=4, seed=0, samples=600, device=device)


def without_a_tap(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Tensor:
    incomplete = weight.clone()
    incomplete[..., 0] = 0
    return eca_cuda.reference.eca(x, incomplete, bias, **options)


def without_weight_gradient(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options) -> Tensor:
    return eca_cuda.reference.eca(x, weight.detach(), bias, **options)


# photographs.py


def test_every_layer_of_resnet50_is_within_budget(device: str) -> None:
    network = eca_resnet50(seed=0).to(device)
    x = photographs.load_photographs(size=64).to(device)
    layers = photographs.measure_layers(network, x, rounds=1)
    assert [layer.name for layer in layers] == [
        f"layer{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 3), start=1) for block in range(blocks)
    ]
    assert [layer.shape[1] for layer in layers] == [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    for layer in layers:
        assert 0 <= layer.used_budget <= 1
        assert 0 < layer.gates.min() < layer.gates.max() < 1
        assert layer.fused_ms > 0 and layer.eager_ms > 0
    assert 0 < photographs.check("logits", network, x, terms=network.fc.in_features) <= 1


def test_the_two_photographs_are_different_feature_maps() -> None:
    china, flower = photographs.load_photographs(size=64)
    assert china.shape == flower.shape == (3, 64, 64)
    assert (china - flower).abs().mean() > 0.5


def test_a_lost_tap_is_noticed_in_a_layer_and_in_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = eca_resnet50(seed=0), photographs.load_photographs(size=64)
    monkeypatch.setattr(eca_cuda.functional, "eca", without_a_tap)
    with pytest.raises(AssertionError, match=r"layer1\.0.*max error .* of its budget"):
        photographs.measure_layers(network, x, rounds=1)
    with pytest.raises(AssertionError, match=r"logits: max error .* of its budget"):
        photographs.check("logits", network, x, terms=network.fc.in_features)


# digits.py


def test_the_loss_curves_agree(comparison: digits.Comparison) -> None:
    assert 0 < comparison.used_budget() <= 1
    # The budget itself is of the size of rounding: single precision has seven digits.
    assert max(comparison.budgets()) < 1e-5 * comparison.exact.losses.max()


def test_all_trainings_learn_equally(comparison: digits.Comparison) -> None:
    fused, reference, exact = comparison.trainings().values()
    assert fused.accuracies[-1] > 5 * CHANCE
    assert fused.accuracies == reference.accuracies == exact.accuracies
    assert fused.losses[-1] < fused.losses[0] / 2


@pytest.mark.parametrize("broken", [without_a_tap, without_weight_gradient])
def test_a_wrong_kernel_leaves_the_loss_curve(broken: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eca_cuda.functional, "eca", broken)
    comparison = digits.compare(VARIANTS[0], epochs=1, seed=0, samples=200, device="cpu")
    with pytest.raises(AssertionError, match=r"loss up to step \d: max error .* of its budget"):
        comparison.used_budget()


# The command lines.


@pytest.mark.parametrize("example", [digits, photographs], ids=lambda module: module.__name__)
def test_main_writes_the_picture(example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "picture.png"
    assert example.main(["--output", str(output), "--threads", "1", *SMALL[example.__name__]]) == 0
    assert "within its error budget" in capsys.readouterr().out
    pixels = image.imread(output)
    width, height = (round(inches * example.FIGURE_DPI) for inches in example.FIGURE_INCHES)
    assert pixels.shape[:2] == (height, width)
    assert pixels.std() > 0.05


def test_main_fails_when_the_kernels_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eca_cuda.functional, "eca", without_a_tap)
    for example in (digits, photographs):
        assert example.main(["--output", str(tmp_path / "picture.png"), *SMALL[example.__name__]]) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--output", "picture.jpg", "expected a .png file in an existing folder, got 'picture.jpg'"),
        ("--output", "/no/such/folder/picture.png", "expected a .png file in an existing folder"),
        ("--threads", "0", "expected an integer of at least 1, got '0'"),
        ("--seed", "one", "expected an integer of at least 0, got 'one'"),
        ("--device", "tpu", "invalid choice: 'tpu'"),
    ],
)
@pytest.mark.parametrize("example", [digits, photographs], ids=lambda module: module.__name__)
def test_a_bad_option_gets_one_line(example, option: str, value: str, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        example.main([option, value])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_papers_counts_are_those_of_the_real_models() -> None:
    found = complexity.measure()
    assert found.backbone_parameters == 25_557_032
    assert found.backbone_macs == 4_089_184_256
    assert (found.eca_parameters, found.eca_parameters_by_formula) == (80, 86)
    assert (found.eca_macs, found.eca_macs_of_square_kernels) == (86_272, 512_768)
    quantities, papers, ours, _ = ([*column.cells] for column in complexity.table(found).columns)
    assert ("backbone parameters", "24.37 M", "24.37 M") in zip(quantities, papers, ours, strict=True)
    assert ("backbone FLOPs", "3.86 G", "3.86 G") in zip(quantities, papers, ours, strict=True)
