# SPDX-License-Identifier: MIT
"""Training on several processes gives the same losses as training on one, with DDP, FSDP2 and DTensor.

    torchrun --nproc-per-node 2 examples/distributed.py

A small network learns scikit-learn's digits. Every step takes one batch, of which each process gets an equal part:
DDP averages gradients, FSDP2 splits parameters too, and with DTensor one program runs on a batch that is sharded
(eca_cuda's operators have rules for that). The losses must be as close to those of one float64 process as the losses of
one float32 process are, up to a factor of two and rounding (eca_cuda.testing). Works on the CPU over gloo.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

import torch
import torch.distributed as dist
import torch.nn.functional as F
from _options import at_least
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from eca_cuda import EfficientChannelAttention
from eca_cuda.testing import used_budget

ENGINES = ("ddp", "fsdp2", "dtensor")
BATCH_SIZE = 64


def network() -> nn.Module:
    """A network with ECA over sixteen channels of length 16, for images as vectors of 64."""
    torch.manual_seed(0)
    attention = EfficientChannelAttention(16, kernel_size=3)
    return nn.Sequential(
        nn.Linear(64, 256), nn.SiLU(), nn.Unflatten(1, (16, 16)), attention, nn.Flatten(), nn.Linear(256, 10)
    )


def train(engine: Optional[str], steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The loss of every step; without an engine, for training on this process alone."""
    model = network().to(dtype)
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    if engine == "ddp":
        model = DistributedDataParallel(model)
    elif engine == "fsdp2":
        fully_shard(model, mesh=mesh)
    elif engine == "dtensor":
        distribute_module(model, mesh)

    def part(batch: Tensor) -> Tensor:
        if engine is None:
            return batch
        return distribute_tensor(batch, mesh, [Shard(0)]) if engine == "dtensor" else batch.chunk(world)[rank]

    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    losses = []
    for step in range(steps):
        batch = slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        loss = F.cross_entropy(model(part(images[batch].to(dtype) / 16)), part(labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(_mean(loss.detach(), engine))
    return torch.stack(losses)


def _mean(loss: Tensor, engine: Optional[str]) -> Tensor:
    """The loss of the whole batch."""
    if isinstance(loss, DTensor):
        return loss.full_tensor()
    if engine is not None:
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    return loss


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Returns the exit status: 1 when an engine's losses are not those of one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES, help="(default: all)")
    parser.add_argument("--steps", type=at_least(1), default=20, help="at most 28 (default: %(default)s)")
    options = parser.parse_args(arguments)
    if "RANK" not in os.environ:
        parser.error("start it with torchrun --nproc-per-node 2")
    dist.init_process_group("gloo")
    failed = False
    single, exact = train(None, options.steps), train(None, options.steps, torch.float64)
    for engine in options.engine:
        losses = train(engine, options.steps)
        try:
            share = used_budget(f"{engine}, losses", losses, single, exact, BATCH_SIZE)
            text = f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, as one process: {share:.0%} of the error budget used"
        except AssertionError as error:
            failed, text = True, f"FAILED: {error}"
        if dist.get_rank() == 0:
            print(f"{engine} on {dist.get_world_size()} processes: {text}", flush=True)
    dist.destroy_process_group()
    return int(failed)


if __name__ == "__main__":
    status = main()
    # Skips Python's shutdown: DTensor's caches keep the process group alive, whose threads may then free a tensor and
    # abort (https://github.com/pytorch/pytorch/issues/190489).
    sys.stdout.flush()
    os._exit(status)
