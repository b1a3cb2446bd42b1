"""LAMB and the search for bad parameters where each process holds a piece of every tensor (FSDP2)."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard

from bertfast.train.diagnosis import first_bad_parameter
from bertfast.train.optimizer import make_optimizer
from tests.train.test_optimizer import LAMB, Toy

WORLD = 2


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().mean().backward()
    optimizer.step()


def train_in_each_process(rank: int, port: int, out: Path) -> None:
    """Five rows over two processes do not divide evenly; the norms must be those of the whole tensor.

    It ends without the interpreter's clean-up, which can abort while a thread of gloo still runs (seen once).
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    whole, sharded = Toy(), Toy()
    fully_shard(sharded)
    alone, together = make_optimizer(whole, LAMB), make_optimizer(sharded, LAMB)
    for number in range(5):
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        step(whole, alone, inputs)
        step(sharded, together, inputs.chunk(WORLD)[rank])
    result = {
        "whole": dict(whole.named_parameters()),
        "sharded": {name: parameter.full_tensor() for name, parameter in sharded.named_parameters()},
        "bad before": first_bad_parameter(sharded),
    }
    with torch.no_grad():
        sharded.second.weight.to_local().fill_(torch.nan if rank == 1 else 0.0)
    torch.save(result | {"bad after": first_bad_parameter(sharded)}, out / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="torch was built without gloo")
def test_sharded_lamb_takes_the_steps_of_one_process_and_every_process_names_the_bad_parameter(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(train_in_each_process, (port, tmp_path), nprocs=WORLD)
    for rank in range(WORLD):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["sharded"], result["whole"], rtol=1e-5, atol=1e-6)
        assert (result["bad before"], result["bad after"]) == (None, "the weight second.weight")
