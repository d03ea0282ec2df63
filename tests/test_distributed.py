"""Converted models under DDP, FSDP2 and DTensor: two processes give what one process gives."""

import copy
import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn

from torch_convarith import convert

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")


def network():
    torch.manual_seed(0)
    return convert(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=2, bias=False),
            nn.ConvTranspose2d(4, 1, 3),
        )
    )


def batch():
    torch.manual_seed(1)
    return torch.randn(4, 1, 6, 6)


def step(model, x):
    """A training step on the whole batch: the output, and parameters after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    y = model(x)
    y.square().mean().backward()
    optimizer.step()
    return y


def same(got, expected):
    torch.testing.assert_close(got.full_tensor() if hasattr(got, "full_tensor") else got, expected)


def data_parallel(rank, mesh, expected, x):
    model = nn.parallel.DistributedDataParallel(network())
    y = step(model, x.chunk(2)[rank])
    same(y, expected["output"].chunk(2)[rank])
    for name, p in model.module.named_parameters():
        same(p, expected[name])


def fully_sharded(rank, mesh, expected, x):
    from torch.distributed.fsdp import fully_shard

    model = network()
    for layer in (model[0], model[2], model[3]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    y = step(model, x.chunk(2)[rank])
    same(y, expected["output"].chunk(2)[rank])
    for name, p in model.named_parameters():
        same(p, expected[name])


def distributed_tensors(rank, mesh, expected, x):
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    for method in ("pattern", "matrix"):
        model = distribute_module(network(), mesh)  # replicated parameters
        for layer in (model[0], model[2], model[3]):
            layer.method = method
        y = step(model, distribute_tensor(x, mesh, [Shard(0)]))
        assert y.placements == (Shard(0),)
        same(y, expected["output"])
        for name, p in model.named_parameters():
            same(p, expected[name])


WAYS = [data_parallel, fully_sharded, distributed_tensors]


def worker(rank, rendezvous, expected, x):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for way in WAYS:
        try:
            way(rank, mesh, expected, x)
        except Exception as error:
            raise AssertionError(f"{way.__name__}: {error}") from error
    dist.barrier()
    # Not by return: a thread of gloo that lets go of a tensor as the interpreter ends aborts (pytorch pull 179291).
    os._exit(0)


def test_two_processes_give_what_one_gives(tmp_path):
    model, x = network(), batch()
    y = step(model, x)
    expected = {"output": y.detach(), **{name: p.detach().clone() for name, p in model.named_parameters()}}
    assert not torch.equal(copy.deepcopy(expected["0.weight"]), network()[0].weight)
    rendezvous = (tmp_path / "rendezvous").as_uri()  # a file: no port that another process may take first
    mp.spawn(worker, (rendezvous, expected, x), nprocs=2)
