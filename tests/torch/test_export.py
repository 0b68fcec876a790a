# SPDX-License-Identifier: MIT
"""Exported models run without this package: AOTInductor with the library alone, ONNX with plain operators."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn

import eca_cuda
from eca_cuda import _ext
from eca_cuda.testing import make_x, used_budget

SHAPE = (2, 20, 6, 5)
OTHER_SHAPES = [(5, 20, 9, 3), (1, 20, 1, 1)]
# Every variant and, together, every option; "eca-circular-hard" has a bias.
NAMES = {"eca-circular-hard", "multi_kernel", "multi_kernel-cross-circular-hard", "bidirectional"}
NAMES |= {"bidirectional-k5-single"}
CHOSEN = [case for case in CASES if str(case) in NAMES]


class Every(nn.Module):
    """All cases on one input, as an export is slow."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_of = nn.ModuleList(nn.ParameterList(case.inputs(SHAPE)[1]) for case in CHOSEN)

    def forward(self, x: Tensor) -> list[Tensor]:
        pairs = zip(CHOSEN, self.parameters_of, strict=True)
        return [case.variant.function(x, *p, residual=x, activation="relu", **case.options) for case, p in pairs]


def reference(case: Case, x: Tensor, dtype: torch.dtype) -> Tensor:
    parameters = [p.to(dtype) for p in case.inputs(SHAPE)[1]]
    x = x.to(dtype)
    return case.variant.reference(x, *parameters, residual=x, activation="relu", **case.options)


def check(results: list[Tensor], x: Tensor) -> None:
    assert len(results) == len(CHOSEN) == len(NAMES)
    for case, y in zip(CHOSEN, results, strict=True):
        eager, exact = (reference(case, x, dtype) for dtype in (torch.float32, torch.float64))
        used_budget(str(case), y, eager, exact, terms=x.shape[1] + x[0, 0].numel())


def test_onnx_has_plain_operators_and_onnxruntime_agrees():
    """Without a custom translation table, with dynamic batch, height and width."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    free = {dim: torch.export.Dim(name) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    program = torch.onnx.export(Every().eval(), (make_x(SHAPE),), dynamo=True, dynamic_shapes=(free,), verbose=False)
    onnx.checker.check_model(program.model_proto, full_check=True)
    assert {node.domain for node in program.model_proto.graph.node} == {""}
    assert not program.model_proto.functions
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for shape in [SHAPE, *OTHER_SHAPES]:
        x = make_x(shape)
        outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        check([torch.from_numpy(y) for y in outputs], x)


def test_onnx_of_a_program_needs_plain_operators_in_it():
    """The exporter keeps the operators of an exported program; for a module it exports plain ones itself."""
    pytest.importorskip("onnxscript")
    layer, x = eca_cuda.EfficientChannelAttention(20).eval(), make_x(SHAPE)

    def operators(mode: eca_cuda.compiling.Mode, grad: bool) -> set[str]:
        with eca_cuda.compile_mode(mode), torch.set_grad_enabled(grad):
            program = torch.export.export(layer, (x,))
        graph = torch.onnx.export(program, dynamo=True, verbose=False).model_proto.graph
        return {node.domain for node in graph.node}

    assert operators("inline", grad=False) == operators("auto", grad=True) == {""}
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"No ONNX function .*eca_cuda\.eca_infer"):
        operators("auto", grad=False)


RUN_PACKAGE = """
import sys, torch
import torch._inductor.codecache  # torch 2.10 does not import it itself
package, library, data = sys.argv[1:]
torch.ops.load_library(library)
model = torch._inductor.aoti_load_package(package)
xs = torch.load(data)
torch.save([model(x) for x in xs], data)
assert "eca_cuda" not in sys.modules
"""


def test_aotinductor_package_needs_the_library_alone(tmp_path: Path):
    """The process that loads it has none of our Python: torch, the .pt2 package and the shared library suffice."""
    free = {dim: torch.export.Dim(name, min=1, max=64) for dim, name in ((0, "batch"), (2, "height"))}
    with torch.no_grad():
        program = torch.export.export(Every().eval(), (make_x(SHAPE),), dynamic_shapes=(free,))
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("eca_cuda.") for name in names) == len(CHOSEN)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    xs, data = [make_x(SHAPE), make_x((5, 20, 9, 5), seed=1)], tmp_path / "data.pt"
    torch.save(xs, data)
    command = [sys.executable, "-c", RUN_PACKAGE, package, str(_ext._C.__file__), str(data)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for x, results in zip(xs, torch.load(data), strict=True):
        check(results, x)
