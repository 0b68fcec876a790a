# SPDX-License-Identifier: MIT
"""What tests/test_distributed.py starts twice: sharded or in DDP, every variant gives what one process alone gets."""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from cases import CASES, DEFAULTS
from torch import Tensor, nn

import eca_cuda
from eca_cuda.testing import make_x

SHAPE = (4, 20, 3, 5)


Function = Callable[..., Tensor]


def compiled(function: Function) -> Function:
    torch.compiler.reset()  # All cases share the frame that is compiled, and a frame has few versions.
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def results(function: Function, x: Tensor, residual: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, residual, *parameters)]
    y = function(leaves[0], *leaves[2:], residual=leaves[1], activation="relu")
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]


def second_derivatives(function: Function, x: Tensor, residual: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Of a loss that holds all first ones."""
    leaves = [t.detach().requires_grad_() for t in (x, residual, *parameters)]
    y = function(leaves[0], *leaves[2:], residual=leaves[1], activation="relu")
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    sum(grad.square().sum() for grad in first).backward()
    return [t.grad for t in leaves]


class Options(nn.Module):
    """Every variant with every option, one after another, the residual around each."""

    def __init__(self) -> None:
        super().__init__()
        made = [case.inputs(SHAPE, torch.float64)[1] for case in CASES]
        self.parameters_of = nn.ModuleList(nn.ParameterList(parameters) for parameters in made)

    def forward(self, x: Tensor) -> Tensor:
        for case, parameters in zip(CASES, self.parameters_of, strict=True):
            x = case.variant.function(x, *parameters, residual=x, activation="relu", **case.options) / 2
        return x


def check_ddp(x: Tensor) -> None:
    """Each process has its part of the batch and gets the gradient of the whole."""
    model, one = Options(), Options()
    one(x).square().mean().backward()
    part = x.chunk(dist.get_world_size())[dist.get_rank()]
    wrapped = nn.parallel.DistributedDataParallel(model)  # must live until backward ends
    wrapped(part).square().mean().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in one.parameters()])


def main() -> None:
    x, parameters = CASES[0].inputs(SHAPE)
    CASES[0].variant.function(x, *parameters)
    assert "torch.distributed.tensor" not in sys.modules, "rules are registered when the first DTensor comes"
    assert "eca_cuda.inductor" not in sys.modules and callable(eca_cuda.inductor.enable)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # Compiled calls come first: nothing but the compilation can have registered the rules for them.
    for case, wrap in [
        *((case, compiled) for case in DEFAULTS),
        *((case, lambda function: function) for case in CASES),
    ]:
        plain = partial(case.variant.function, **case.options)
        function = wrap(plain)
        x, parameters = case.inputs(SHAPE, torch.float64)
        residual = make_x(SHAPE, torch.float64, seed=2)
        expected = results(plain, x, residual, parameters)
        whole = [distribute_tensor(t, mesh, [Replicate()]) for t in parameters]
        for placement in (Shard(0), Shard(1), Replicate()):
            maps = [distribute_tensor(t, mesh, [placement]) for t in (x, residual)]
            found = results(function, *maps, whole)
            torch.testing.assert_close([t.full_tensor() for t in found], expected)
            if placement == Shard(0):  # No map is gathered, and no gradient is summed before it must be.
                assert {t.placements for t in found[:3]} == {(Shard(0),)}
                assert {t.placements for t in found[3:]} == {(Partial(),)}
            with torch.no_grad():
                y = function(*maps[:1], *whole)
            assert y.placements == ((Shard(0),) if placement == Shard(0) else (Replicate(),))
            if function is plain:  # torch does not differentiate compiled backwards
                found = second_derivatives(function, *maps, whole)
                wanted = second_derivatives(function, x, residual, parameters)
                torch.testing.assert_close([t.full_tensor() for t in found], wanted)
    check_ddp(x)
    dist.destroy_process_group()
    print("every case is right")


if __name__ == "__main__":
    main()
