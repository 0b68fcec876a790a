# SPDX-License-Identifier: MIT
"""The six steps of csrc/README.md are all that a new variant takes: they are done in a copy of the sources for a gate
that amplifies each channel's deviation from the mean of all, and the tests of every variant then pass for it, on the
CPU and on the emulated device, in one pass and in two phases."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import emulated
import pytest

ROOT = emulated.ROOT

pytestmark = pytest.mark.skipif(bool(emulated.missing()), reason=f"no emulated device: {emulated.missing()}")


@dataclass(frozen=True)
class Edit:
    """``text`` goes after ``anchor``, which a file holds once; without an anchor it is the file."""

    file: str
    anchor: str
    text: str

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        if not self.anchor:
            path.write_text(self.text)
            return
        text = path.read_text()
        assert text.count(self.anchor) == 1, (
            f"{self.file} has changed: {self.anchor!r} is there {text.count(self.anchor)}x"
        )
        path.write_text(text.replace(self.anchor, self.anchor + self.text))


REFERENCE = '''
def contrast_eca(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    padding_mode: str = "zeros",
    gate: str = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Optional[str] = None,
    lengths: Optional[Tensor] = None,
    channels_dim: int = 1,
    conv: ChannelConv = channel_conv,
) -> Tensor:
    """``g = gate(scale (m - mean of m over the channels) + shift)``; scale and shift ``[1]``."""
    m = pool(x, scale, lengths, channels_dim)
    z = scale * (m - m.mean(1, keepdim=True)) + shift
    return rescale(x, squash(z, gate), residual, activation, channels_dim)

'''

GATE = """// SPDX-License-Identifier: MIT
// L0. Contrast gate: z[c] = scale (m[c] - mean of m) + shift, g = squash(z).
//   dz = dg * squash'(z)    dm[c] = scale (dz[c] - mean of dz)
//   dscale = sum_nc dz[c] (m[c] - mean of m)    dshift = sum_nc dz[c]
// Parameters: scale [1], shift [1].
#pragma once
#include "gate.h"

namespace eca {
inline namespace ECA_TARGET {

template <class A>
struct ContrastGate {
  const GateShape& shape;
  const A *m = nullptr, *dz = nullptr;  // for record
  A middle = 0;

  static int parameters(const GateShape&, Parameter* out) {
    out[0] = {Combine::kBlocks, 0, 1};
    out[1] = {Combine::kBlocks, 1, 1};
    return 2;
  }
  static GateNeeds needs(const GateShape&, bool backward) {
    return backward ? GateNeeds{1, 0, {1, 1}, 2} : GateNeeds{0, 0, {1, 0}, 1};
  }

  template <class X>
  ECA_HD void forward(X& x, const A* mean, A* gate) {
    middle = average(x, mean, x.scratch);
    x.each([&](auto c) { x.store(gate, c, squash(logit(x, mean, c), shape.hard())); });
  }

  template <class X>
  ECA_HD void backward(X& x, const A* mean, A* gate, A* grad) {
    using V = typename X::Value;
    A* const of_logit = x.array(0);
    m = mean;
    dz = of_logit;
    middle = average(x, mean, x.scratch);
    x.each([&](auto c) {
      const auto z = logit(x, mean, c), g = squash(z, shape.hard());
      x.store(gate, c, g);
      x.store(of_logit, c, squash_backward(x.load(grad, c), z, g, shape.hard()));
    });
    const A common = average(x, dz, x.scratch + 1);
    x.each([&](auto c) { x.store(grad, c, V(x.numbers(0)[0]) * (x.load(dz, c) - V(common))); });
  }

  template <class X>
  ECA_HD void record(X& x, const Record<A>& to) {
    using V = typename X::Value;
    x.keep_sums(1, to.block, [&](int, auto c) { return x.load(dz, c) * (x.load(m, c) - V(middle)); });
    x.keep_sums(1, to.block + 1, [&](int, auto c) { return x.load(dz, c); });
  }

 private:
  template <class X>
  ECA_HD A average(X& x, const A* p, A* sum) const {
    x.sums(1, sum, [&](int, auto c) { return x.load(p, c); });
    return sum[0] / static_cast<A>(shape.channels);
  }

  template <class X, class C>
  ECA_HD auto logit(X& x, const A* mean, C c) const {
    using V = typename X::Value;
    return V(x.numbers(0)[0]) * (x.load(mean, c) - V(middle)) + V(x.numbers(1)[0]);
  }
};

}  // namespace ECA_TARGET
}  // namespace eca
"""

TYPE = """template <class A>
struct GateType<Variant::kContrast, A> {
  using type = ContrastGate<A>;
};
"""

ONE_PASS = """// SPDX-License-Identifier: MIT
// L2. The one-pass kernels of the contrast gate.
#include "one_pass_launch.cuh"

namespace eca {
template cudaError_t launch_one_pass_of<Variant::kContrast>(const OnePassArgs<ForwardCall>&, int, cudaStream_t, Ask);
template cudaError_t launch_one_pass_of<Variant::kContrast>(const OnePassArgs<BackwardCall>&, int, cudaStream_t, Ask);
}  // namespace eca
"""

OPERATORS = """
  static Tensor contrast_infer(T x, T scale, T shift, Optional residual, int64_t flags) {
    return infer(Variant::kContrast, x, {&scale, &shift}, residual, flags);
  }
  static Three contrast_forward(T x, T scale, T shift, Optional residual, int64_t flags) {
    return forward(Variant::kContrast, x, {&scale, &shift}, residual, flags);
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor> contrast_backward(T grad_y, T x, T mean, Optional signs,
                                                                      T scale, T shift, int64_t flags) {
    Gradients g = backward(Variant::kContrast, grad_y, x, mean, signs, {&scale, &shift}, flags);
    return {g[0], g[1], g[2], g[3]};
  }
"""

IMPLEMENTATIONS = """
  m.impl("contrast_eca_infer", TORCH_BOX(&Ops::contrast_infer));
  m.impl("contrast_eca_forward", TORCH_BOX(&Ops::contrast_forward));
  m.impl("contrast_eca_backward", TORCH_BOX(&Ops::contrast_backward));"""

SCHEMAS = """
  m.def("contrast_eca_infer(Tensor x, Tensor scale, Tensor shift, Tensor? residual, int flags) -> Tensor");
  m.def("contrast_eca_forward(Tensor x, Tensor scale, Tensor shift, Tensor? residual, int flags)"
        " -> (Tensor y, Tensor mean, Tensor signs)");
  m.def("contrast_eca_backward(Tensor grad_y, Tensor x, Tensor mean, Tensor? signs, Tensor scale, Tensor shift,"
        " int flags) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_scale, Tensor grad_shift)");"""

SHAPES = """if (variant == Variant::kContrast) {
    require(has_sizes(*p[0], {1}), "scale");
    require(has_sizes(*p[1], {1}), "shift");
    shape.kernel_size = 1;
  } else """

CHECKS = """

def _check_contrast_eca(x: Tensor, p: dict[str, Tensor], circular: bool, _: bool) -> None:
    _check_shape("scale", p["scale"], (1,))
    _check_shape("shift", p["shift"], (1,))
"""

FUNCTION = '''

def contrast_eca(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    padding_mode: PaddingMode = "zeros",
    gate: Gate = "sigmoid",
    residual: Optional[Tensor] = None,
    activation: Activation = None,
) -> Tensor:
    """Amplifies what sets a channel apart from the mean of all."""
    return autograd.apply("contrast_eca", x, (scale, shift), residual, _flags(padding_mode, gate, activation))
'''

MODULE = '''

class ContrastECA(_ChannelAttention):
    """:func:`functional.contrast_eca` with parameters ``scale [1]`` and ``shift [1]``."""

    def __init__(
        self,
        c: int,
        *,
        padding_mode: PaddingMode = "zeros",
        gate: Gate = "sigmoid",
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(c, padding_mode, gate)
        self.scale = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.shift = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor, residual: Optional[Tensor] = None, activation: Activation = None) -> Tensor:
        options: dict[str, Any] = {"padding_mode": self.padding_mode, "gate": self.gate_function}
        return functional.contrast_eca(x, self.scale, self.shift, residual=residual, activation=activation, **options)
'''

ENTRY = """
CONTRAST = Variant(
    "contrast_eca",
    functional.contrast_eca,
    reference.contrast_eca,
    modules.ContrastECA,
    lambda c: {"scale": (1,), "shift": (1,)},
)"""

CASE = """    Case("contrast-hard", CONTRAST, {}, {"gate": "hard_sigmoid"}),\n"""

STEPS: dict[int, list[Edit]] = {
    1: [Edit("eca_cuda/reference.py", "    return rescale(x, g, residual, activation, channels_dim)\n\n", REFERENCE)],
    2: [Edit("csrc/gates/contrast.h", "", GATE)],
    3: [
        Edit("csrc/options.h", "kMultiKernel, kBidirectional", ", kContrast"),
        Edit("csrc/options.h", "inline constexpr int kVariants = 3", " + 1"),
        Edit("csrc/gates/registry.h", '#include "bidirectional.h"\n', '#include "contrast.h"\n'),
        Edit("csrc/gates/registry.h", "using type = BidirectionalGate<A>;\n};\n", TYPE),
        Edit("csrc/cuda/one_pass_contrast.cu", "", ONE_PASS),
        Edit("csrc/cpu/table.h", '#include "../gates/bidirectional.h"\n', '#include "../gates/contrast.h"\n'),
        Edit(
            "csrc/cpu/table.h",
            "{gate_kernels<BidirectionalGate, float>(), gate_kernels<BidirectionalGate, double>()}",
            ", {gate_kernels<ContrastGate, float>(), gate_kernels<ContrastGate, double>()}",
        ),
        Edit("csrc/plan/plan.cpp", '"multi_kernel_eca", "bidirectional_eca"', ', "contrast_eca"'),
        Edit(
            "csrc/plan/python.cpp",
            '{"bidirectional_eca", static_cast<int>(Variant::kBidirectional)}',
            ', {"contrast_eca", static_cast<int>(Variant::kContrast)}',
        ),
    ],
    4: [
        Edit("csrc/operators.h", "return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};\n  }\n", OPERATORS),
        Edit("csrc/operators.h", "TORCH_BOX(&Ops::bidirectional_backward));", IMPLEMENTATIONS),
        Edit("csrc/schemas.h", 'Tensor grad_mix_weight,"\n        " Tensor grad_mix_bias)");', SCHEMAS),
        Edit("csrc/arguments.h", "    shape.kernel_size = 7;\n  } else ", SHAPES),
    ],
    5: [
        Edit("eca_cuda/checks.py", '    "eca": ("weight", "bias"),\n', '    "contrast_eca": ("scale", "shift"),\n'),
        Edit("eca_cuda/checks.py", '    _check_shape("mix_bias", p["mix_bias"], (2,))\n', CHECKS),
        Edit("eca_cuda/checks.py", '    "eca": _check_eca,\n', '    "contrast_eca": _check_contrast_eca,\n'),
        Edit("eca_cuda/functional.py", 'apply("bidirectional_eca", x, parameters, residual, flags)\n', FUNCTION),
        Edit("eca_cuda/modules.py", '("" if self.final_sigmoid else ", final_sigmoid=False")\n', MODULE),
        Edit("eca_cuda/__init__.py", "from .functional import batch_norm_eca, bidirectional_eca, ", "contrast_eca, "),
        Edit("eca_cuda/__init__.py", "from .modules import BidirectionalECA, ", "ContrastECA, "),
    ],
    6: [
        Edit("eca_cuda/testing.py", "    _bidirectional_shapes,\n)", ENTRY),
        Edit("eca_cuda/testing.py", "VARIANTS = (ECA, MULTI_KERNEL, BIDIRECTIONAL", ", CONTRAST"),
        Edit("tests/cases.py", "from eca_cuda.testing import BIDIRECTIONAL, ", "CONTRAST, "),
        Edit("tests/cases.py", '    Case("multi_kernel", MULTI_KERNEL),\n', '    Case("contrast", CONTRAST),\n'),
        Edit("tests/cases.py", '    Case("eca-k1", ECA, {"k": 1}),\n', CASE),
    ],
}  # fmt: skip

# Of the tests that run every variant: each dtype, option and kernel, and the first two derivatives.
FILES = ("test_forward.py", "test_backward.py", "test_gradcheck.py", "test_emulated_one_pass.py")
CHOSEN = "contrast and (every_option or who_runs_when)"


def test_the_steps_name_the_files_that_are_edited() -> None:
    text = (ROOT / "csrc/README.md").read_text().split("## Add a variant in six steps")[1]
    steps = re.findall(r"^\d\. (.*?)(?=^\d\. |^$)", text, re.MULTILINE | re.DOTALL)
    assert len(steps) == len(STEPS)
    for named, edits in zip(steps, STEPS.values(), strict=True):
        files = {f if (ROOT / f).exists() else f"csrc/{f}" for f in re.findall(r"`(\S+\.(?:py|h|cpp|cu))`", named)}
        assert {f.replace("<name>", "contrast") for f in files} == {edit.file for edit in edits}, named


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources with the variant, built for the CPU without optimization and with warnings as errors."""
    folder = tmp_path_factory.mktemp("variant")
    for name in ("csrc", "eca_cuda", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for edits in STEPS.values():
        for edit in edits:
            edit.apply(folder)
    run(folder, "setup.py", "build_ext", "--inplace", ECA_CUDA_BUILD="cpu", ECA_CUDA_DEBUG="1", MAX_JOBS="2")
    return folder


@pytest.fixture(scope="module")
def library(copy: Path) -> Path:
    """The same of the emulated device."""
    tools = emulated.build_tools()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulated, "ROOT", copy)
        patch.setitem(tools.KERNEL_FLAGS, "plain", ["-O0", "-fno-strict-aliasing"])
        return emulated.build_library("plain", "variant")


def run(folder: Path, *arguments: str, **environment: str) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


def test_the_tests_of_every_variant_pass_for_it(copy: Path, library: Path) -> None:
    options = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN)
    output = run(copy, "-m", "pytest", *options, *(f"tests/{f}" for f in FILES), ECA_CUDA_EMULATED_LIBRARY=str(library))
    assert re.search(r"^\d+ passed, \d+ deselected", output, re.MULTILINE), output  # and nothing was skipped
