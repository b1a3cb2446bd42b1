"""Many processes, one run: each learns from its own share of every step, and the weights stay the same in all.

`torchrun` starts the processes and tells each its rank. Data parallel by DDP, or with parameters, gradients and
moments cut over the ranks by FSDP2 (`fully_shard`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from bertfast.errors import ConfigError
from bertfast.model.encoder import BertLayer


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it. Alone: rank 0 of 1."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes what one has to write: states, logs, the checkpoint."""
        return self.rank == 0

    def share(self, global_batch_size: int) -> int:
        """Sequences of a step for each rank; ConfigError where they cannot be shared out evenly."""
        if global_batch_size % self.size:
            raise ConfigError(
                f"global_batch_size {global_batch_size} cannot be shared out over {self.size} processes. "
                f"Choose a multiple of {self.size}, or start fewer processes."
            )
        return global_batch_size // self.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in every rank."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int, device: torch.device) -> int:
        """The largest value of all ranks, in every rank."""
        if self.size == 1:
            return value
        values = torch.tensor(value, device=device)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def first(self, value: int) -> int:
        """The value that the first rank has, in every rank."""
        if self.size == 1:
            return value
        values: list[int] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that `torchrun` started this process in, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()


def spread(model: nn.Module, world: World, device: torch.device, sharding: str) -> nn.Module:
    """The module to call for a forward pass; parameters are cut in place by `fsdp`, a wrapper adds up for `ddp`."""
    if world.size == 1:
        return model
    if sharding == "fsdp":
        mesh = init_device_mesh(device.type, (world.size,))
        for part in model.modules():
            if isinstance(part, BertLayer):
                fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def gradients_stay_here(model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """While it holds, gradients only accumulate in this rank; the `last` micro-batch adds them up over all."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together from all ranks where it is cut over them. Then all ranks have to call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor on the device of a parameter, and cut over the ranks as that is."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor.to(parameter.device)
