"""A batch spread over 2 and 4 real processes (gloo): loss, gradients of both towers, and DDP, against one process."""

import json
import socket
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lossary
from lossary import reduce
from lossary.errors import MissingInput
from lossary.folds import tiles

SHARES = {2: [7, 5], 4: [4, 1, 5, 2]}  # uneven, as the last batch of an epoch is
TOWERS = ("clip", "siglip")  # without a mask their columns go round in a ring, else they are gathered
OBJECTIVES = {
    "supcon": lambda: lossary.supcon(tau=0.1),
    "supcon, worst fifth": lambda: lossary.supcon(tau=0.1).reduce(reduce.cvar(alpha=0.2)),
    "supcon, learned": lambda: lossary.supcon(tau=lossary.memory.Learned(0.2)),
    "circle": lambda: lossary.circle(),
    "batch_hard": lambda: lossary.batch_hard(),
    "clip": lambda: lossary.clip(tau=lossary.memory.Learned(0.3)),
    "clip, sharp": lambda: lossary.clip(tau=0.02),
    "siglip": lambda: lossary.siglip(scale=lossary.memory.Learned(5.0), bias=-3.0),
    "clip, masked": lambda: lossary.clip(tau=lossary.memory.Learned(0.3)),
    "siglip, masked": lambda: lossary.siglip(scale=lossary.memory.Learned(5.0), bias=-3.0),
}


def batch(tower):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 6, generator=g, dtype=torch.float64)
    y = torch.randn(12, 6, generator=g, dtype=torch.float64) if tower else torch.arange(12) % 4
    valid = torch.arange(12) != 3
    return x, y, valid


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def loss_of(name, net, x, y, valid, **more):
    objective = OBJECTIVES[name]()
    other = net(y) if y.is_floating_point() else y
    whole = name.startswith(TOWERS) and "masked" not in name
    loss = objective(net(x), other, valid=None if whole else valid, **more)
    loss.backward()
    return loss.item(), [p.grad for p in objective.parameters()]


def one_process(name):
    net = model()
    value, learned = loss_of(name, net, *batch(name.startswith(TOWERS)))
    return value, [p.grad for p in net.parameters()], learned


def worker(rank, world, port, small, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    first = sum(SHARES[world][:rank])
    mine = slice(first, first + SHARES[world][rank])
    found = {}
    with mock.patch.multiple(tiles.SIZES, small=small, block=(400, 400), lane=200):
        for name in OBJECTIVES:
            net = DistributedDataParallel(model())
            share = (t[mine] for t in batch(name.startswith(TOWERS)))
            value, learned = loss_of(name, net, *share, across=True)
            for g in learned:  # as DDP would, were the objective a part of the model
                dist.all_reduce(g)
                g /= world
            found[name] = value, [p.grad.tolist() for p in net.parameters()], [g.tolist() for g in learned]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("world", "small"), [(2, 2**18), (4, 0)], ids=["2, whole", "4, a few rows at a time"])
def test_the_batch_of_all_processes_is_one_batch(world, small, tmp_path):
    mp.spawn(worker, (world, port(), small, tmp_path), nprocs=world)
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for name in OBJECTIVES:
        value, grads, learned = one_process(name)
        for rank in range(world):
            got, got_grads, got_learned = answers[rank][name]
            assert got == pytest.approx(value, abs=1e-10), (name, rank)
            for g, want in zip(got_grads + got_learned, [*grads, *learned], strict=True):
                torch.testing.assert_close(
                    torch.tensor(g, dtype=torch.float64), want.double(), rtol=1e-6, atol=1e-9, msg=f"{name}, {rank}"
                )


def test_without_a_process_group_one_is_asked_for():
    with pytest.raises(MissingInput, match="process group"):
        lossary.supcon()(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), across=True)
