# SPDX-License-Identifier: MIT
"""Run by torch/test_distributed.py in two processes: sharded or in DDP, every variant matches a single process."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from cases import CASES, DEFAULTS
from torch import Tensor, nn

import eca_cuda
from eca_cuda._compat import TORCH
from eca_cuda.testing import make_x

SHAPE = (4, 20, 3, 5)
# Older versions pad a DTensor like an earlier one of its shape, whatever the padding (constant_pad_nd's cache).
PADS = TORCH >= (2, 12)

Function = Callable[..., Tensor]


def compiled(function: Function) -> Function:
    torch.compiler.reset()  # all cases share one frame, and Dynamo compiles few versions of a frame
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def results(function: Function, x: Tensor, residual: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in (x, residual, *parameters)]
    y = function(leaves[0], *leaves[2:], residual=leaves[1], activation="relu")
    y.square().sum().backward()
    return [y.detach(), *(t.grad for t in leaves)]


def second_derivatives(function: Function, x: Tensor, residual: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """The second derivatives: gradients of a loss of all first derivatives."""
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
            listed = [p for p in parameters]  # noqa: C416 - torch 2.12 and before do not trace *parameters nor list()
            x = case.variant.function(x, *listed, residual=x, activation="relu", **case.options) / 2
        return x


def check_data_parallel(x: Tensor, mesh: Any) -> None:
    """DDP and FSDP2, compiled and not: each process has a part of the batch and gets the gradient of the whole."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    def sharded(model: nn.Module) -> nn.Module:
        empty = {p for p in model.parameters() if not p.numel()}  # torch 2.14 cannot reduce the gradients of these
        return fully_shard(model, mesh=mesh, ignored_params=empty)

    one = Options()
    one(x).square().mean().backward()
    part = x.chunk(dist.get_world_size())[dist.get_rank()]
    for wrap in (nn.parallel.DistributedDataParallel, sharded):
        for run in (lambda model: model, lambda model: torch.compile(model, backend="aot_eager")):
            torch.compiler.reset()
            model = Options()
            wrapped = wrap(model)  # must live until backward ends
            run(wrapped)(part).square().mean().backward()
            grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
            torch.testing.assert_close(grads, [p.grad for p in one.parameters()])


def check_a_sharded_convolution(mesh: Any) -> None:
    """With ``conv1`` under FSDP2, the layer calls it, which gathers its weight; the function refuses that weight."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    layer, x = eca_cuda.EfficientChannelAttention(20), make_x(SHAPE)
    expected = layer(x)
    fully_shard(layer.conv1, mesh=mesh)
    y = layer(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    assert layer.conv1.weight.grad is not None
    layer.conv1.reshard()
    try:
        eca_cuda.eca(x, layer.conv1.weight)
    except TypeError as error:
        assert "apply fully_shard to the layer" in str(error), error
    else:
        raise AssertionError("not refused")


def check_channels_last(mesh: Any) -> None:
    """Tokens stay sharded, compiled too: moving the channels gathers nothing."""
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    for case in DEFAULTS:
        x, parameters = case.inputs(SHAPE, torch.float64)
        maps = [t.movedim(1, -1).contiguous() for t in (x, make_x(SHAPE, torch.float64, seed=2))]
        one = partial(case.variant.function, channels_dim=-1)
        wanted = results(one, *maps, parameters)
        sharded = [distribute_tensor(t, mesh, [Shard(0)]) for t in maps]
        whole = [distribute_tensor(t, mesh, [Replicate()]) for t in parameters]
        for function in (one, compiled(one)):
            found = results(function, *sharded, whole)
            assert {t.placements for t in found[:3]} == {(Shard(0),)}
            assert {t.placements for t in found[3:]} == {(Partial(),)}
            torch.testing.assert_close([t.full_tensor() for t in found], wanted)


def check_lengths(mesh: Any) -> None:
    """Everything but the padding stays sharded, and second derivatives match a single process."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    lengths = torch.tensor([9, 1, 4, 7])
    for case in DEFAULTS:
        x, parameters = case.inputs((4, 20, 9), torch.float64)
        residual = make_x((4, 20, 9), torch.float64, seed=2)
        maps = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, residual)]
        whole = [distribute_tensor(t, mesh, [Replicate()]) for t in parameters]
        one = partial(case.variant.function, lengths=lengths)
        for placement in (Shard(0), Replicate()):
            function = partial(case.variant.function, lengths=distribute_tensor(lengths, mesh, [placement]))
            for derivatives in (results, second_derivatives):
                found = derivatives(function, *maps, whole)
                assert found[0].placements == (Shard(0),)
                wanted = derivatives(one, x, residual, parameters)
                torch.testing.assert_close([t.full_tensor() for t in found], wanted)


def check_that_what_pads_is_refused(mesh: Any) -> None:
    """Where torch pads DTensors wrongly, calls are refused instead of giving wrong gradients."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    x, parameters = DEFAULTS[0].inputs((4, 20, 9), torch.float64)
    map, lengths = (distribute_tensor(t, mesh, [Shard(0)]) for t in (x, torch.tensor([9, 1, 4, 7])))
    whole = [distribute_tensor(t, mesh, [Replicate()]) for t in parameters]
    calls = (
        partial(second_derivatives, eca_cuda.eca, map, map, whole),
        partial(eca_cuda.eca, map, *whole, lengths=lengths),
    )
    for call in calls:
        try:
            call()
        except NotImplementedError as error:
            assert "x: expected a plain tensor, got a DTensor" in str(error) and "torch >= 2.12" in str(error), error
        else:
            raise AssertionError("not refused")
    shards = [t.to_local() for t in (map, *whole)]
    y = DTensor.from_local(eca_cuda.eca(*shards, lengths=lengths.to_local()), mesh, [Shard(0)])
    torch.testing.assert_close(y.full_tensor(), eca_cuda.eca(x, *parameters, lengths=lengths.full_tensor()))


def main() -> None:
    x, parameters = CASES[0].inputs(SHAPE)
    CASES[0].variant.function(x, *parameters)
    assert "torch.distributed.tensor" not in sys.modules, "rules are registered when the first DTensor comes"
    assert "eca_cuda.inductor" not in sys.modules and callable(eca_cuda.inductor.enable)

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # Compiled calls run first, so that only compilation can have registered the rules.
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
            if placement == Shard(0):  # no map is gathered, and no gradient is reduced early
                assert {t.placements for t in found[:3]} == {(Shard(0),)}
                assert {t.placements for t in found[3:]} == {(Partial(),)}
            with torch.no_grad():
                y = function(*maps[:1], *whole)
            assert y.placements == ((Shard(0),) if placement == Shard(0) else (Replicate(),))
            if function is plain and PADS:  # torch does not differentiate compiled backward passes
                found = second_derivatives(function, *maps, whole)
                wanted = second_derivatives(function, x, residual, parameters)
                torch.testing.assert_close([t.full_tensor() for t in found], wanted)
    check_channels_last(mesh)
    check_data_parallel(x, mesh)
    check_a_sharded_convolution(mesh)
    (check_lengths if PADS else check_that_what_pads_is_refused)(mesh)
    dist.destroy_process_group()
    print("every case is right")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # see examples/distributed.py
