# SPDX-License-Identifier: MIT
"""What tests/test_distributed.py starts twice: every variant on DTensors gives what it gives on whole tensors."""

import sys

import torch
import torch.distributed as dist
from cases import CASES, Case
from torch import Tensor

import eca_cuda
from eca_cuda.testing import make_x

SHAPE = (4, 20, 3, 5)


def results(case: Case, x: Tensor, residual: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, residual, *parameters)]
    y = case.variant.function(leaves[0], *leaves[2:], residual=leaves[1], activation="relu", **case.options)
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]


def main() -> None:
    x, parameters = CASES[0].inputs(SHAPE)
    CASES[0].variant.function(x, *parameters)
    assert "torch.distributed.tensor" not in sys.modules, "rules are registered when the first DTensor comes"
    assert "eca_cuda.inductor" not in sys.modules and callable(eca_cuda.inductor.enable)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for case in CASES:
        x, parameters = case.inputs(SHAPE, torch.float64)
        residual = make_x(SHAPE, torch.float64, seed=2)
        expected = results(case, x, residual, parameters)
        whole = [distribute_tensor(t, mesh, [Replicate()]) for t in parameters]
        for placement in (Shard(0), Shard(1), Replicate()):
            maps = [distribute_tensor(t, mesh, [placement]) for t in (x, residual)]
            found = results(case, *maps, whole)
            torch.testing.assert_close([t.full_tensor() for t in found], expected)
            if placement == Shard(0):  # No map is gathered, and no gradient is summed before it must be.
                assert {t.placements for t in found[:3]} == {(Shard(0),)}
                assert {t.placements for t in found[3:]} == {(Partial(),)}
            with torch.no_grad():
                y = case.variant.function(*maps[:1], *whole, **case.options)
            assert y.placements == ((Shard(0),) if placement == Shard(0) else (Replicate(),))
    dist.destroy_process_group()
    print("every case is right")


if __name__ == "__main__":
    main()
