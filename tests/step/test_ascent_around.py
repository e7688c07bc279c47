"""The two-pass engine under gradient scaling, saved and resumed, and over processes."""

import copy
import json
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ascent_nets import RULES, batches, close, loss_of, mlp, same, sgd, weights
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lossary.errors import DomainError, ShapeError
from lossary.step import Ascent, Step, friendly_sam, gsam, random_perturbation, rwp, sam


# --- gradient scaling -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RULES)
def test_a_scaler_changes_nothing_but_overflow(name):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**14), torch.amp.GradScaler("cpu", enabled=False)):
        model = mlp()
        step = Step(model, sgd(model), RULES[name](), scaler=scaler, clip=0.7)
        for batch in batches():
            step(loss_of(model, batch))
        found.append(weights(model))
    close(found[0], found[1], rtol=0, atol=1e-10)
    assert same(found[0], found[2])


def test_a_rule_sees_unscaled_gradients():
    seen = []

    def rule(params, grads, *, rho):
        seen.append([g.clone() for g in grads])
        return [torch.zeros_like(g) for g in grads]

    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = mlp()
        Step(model, sgd(model), Ascent("watch", rule, {"rho": 0.0}), scaler=scaler)(loss_of(model, batches()[0]))
    close(*seen, rtol=0, atol=1e-15)


@pytest.mark.parametrize("bad", [1, 2], ids=["first pass", "second pass"])
@pytest.mark.parametrize("name", ["friendly", "gsam", "random_perturbation", "awp"])
def test_overflow_in_either_pass_skips_the_step_and_lowers_the_scale_once(name, bad):
    model = mlp()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    step = Step(model, sgd(model), RULES[name](), scaler=scaler)
    good, worse = batches(2)
    step(loss_of(model, good))
    before, memory, calls = weights(model), copy.deepcopy(step.memory), []

    def closure():
        calls.append(1)
        return loss_of(model, worse)() * (float("inf") if len(calls) == bad else 1.0)

    step(closure)
    assert len(calls) == bad  # no second pass after a first that overflowed
    assert same(weights(model), before)
    assert scaler.get_scale() == 512.0
    assert step.memory.draws == memory.draws
    assert same(step.memory.means.values(), memory.means.values())
    step(loss_of(model, good))
    assert scaler.get_scale() == 512.0
    assert not same(weights(model), before)


# --- saving -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RULES)
def test_six_steps_are_three_saved_and_three(name, tmp_path):
    whole = mlp(norm=True)
    step = Step(whole, sgd(whole), RULES[name]())
    for batch in batches(6):
        step(loss_of(whole, batch))
    model = mlp(norm=True)
    optimizer = sgd(model)
    step = Step(model, optimizer, RULES[name]())
    for batch in batches(6)[:3]:
        step(loss_of(model, batch))
    torch.save([model.state_dict(), optimizer.state_dict(), step.state_dict()], tmp_path / "at3.pt")
    kept = torch.load(tmp_path / "at3.pt", weights_only=True)
    model = mlp(seed=1, norm=True)
    optimizer = sgd(model)
    step = Step(model, optimizer, RULES[name]())
    for part, state in zip((model, optimizer, step), kept, strict=True):
        part.load_state_dict(state)
    for batch in batches(6)[3:]:
        step(loss_of(model, batch))
    assert same(model.state_dict().values(), whole.state_dict().values())


def test_a_state_that_does_not_fit_is_refused():
    model = mlp()
    step = Step(model, sgd(model), friendly_sam())
    step(loss_of(model, batches()[0]))
    with pytest.raises(DomainError, match="another rule"):
        Step(model, sgd(model), sam()).load_state_dict(step.state_dict())
    other = nn.Linear(3, 3)
    with pytest.raises(ShapeError, match="does not fit"):
        Step(other, sgd(other), friendly_sam()).load_state_dict(step.state_dict())


# --- processes --------------------------------------------------------------------------------------------------------
WAYS = {
    "own": {"ascent": sam(0.3)},
    "shared": {"ascent": sam(0.3), "shared": True},
    "rwp": {"ascent": rwp(0.3, steps=2)},
    "gsam": {"ascent": gsam(0.3, alpha=0.4)},
    "gsam, shared": {"ascent": gsam(0.3, alpha=0.4), "shared": True},
    "random_perturbation, shared": {"ascent": random_perturbation(0.3, seed=2), "shared": True},
    "random_perturbation": {"ascent": random_perturbation(0.3, seed=2)},
    "apart": {"ascent": sam(0.3), "apart": True, "accumulate": 2},
    "overflow": {"ascent": sam(0.3)},
}


def pieces(way, rank):
    x, y = batches(1)[0]
    mine = x.chunk(2)[rank], y.chunk(2)[rank]
    return list(zip(mine[0].chunk(2), mine[1].chunk(2), strict=True)) if way == "apart" else [mine]


def steps_of(rank, port):
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        found = {}
        for way, options in WAYS.items():
            net = DistributedDataParallel(mlp())
            scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if way == "overflow" else None
            step = Step(net, sgd(net, momentum=0.0, weight_decay=0.0, lr=1.0), scaler=scaler, **options)
            factor = float("inf") if way == "overflow" and rank == 0 else 1.0
            step([lambda p=p, net=net, f=factor: f * loss_of(net, p)() for p in pieces(way, rank)])
            found[way] = [p.tolist() for p in net.parameters()] + ([scaler.get_scale()] if scaler else [])
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return found


def worker(_, port, path):
    torch.set_num_threads(1)
    path.write_text(json.dumps(steps_of(1, port)))


def test_two_processes(tmp_path):
    """Each its own displacement and the mean of the gradients; or, shared, the step of one process with the batch."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    other = mp.spawn(worker, (port, tmp_path / "1.json"), nprocs=1, join=False)  # this process is the first
    a = steps_of(0, port)
    while not other.join():
        pass
    assert a == json.loads((tmp_path / "1.json").read_text())
    for way, options in WAYS.items():
        got = [torch.tensor(p, dtype=torch.float64) for p in a[way]]
        if way == "overflow":  # of one process: both skip, before the second pass
            assert got.pop().item() == 128.0
            close(got, weights(mlp()), rtol=0, atol=0)
            continue
        shared = options.get("shared", False)
        parts = [batches(1)[0]] if shared else [p for rank in range(2) for p in pieces(way, rank)]
        moves = []
        for part in parts:
            lone = mlp()
            Step(lone, sgd(lone, momentum=0.0, weight_decay=0.0, lr=1.0), options["ascent"])(loss_of(lone, part))
            moves.append(weights(lone))
        want = [torch.stack(m).mean(0) for m in zip(*moves, strict=True)]
        if (
            way == "random_perturbation"
        ):  # the second process has drawn noise of its own, a lone one draws the first one's
            assert not all(torch.allclose(x, y, rtol=1e-3) for x, y in zip(got, want, strict=True))
            continue
        close(got, want, rtol=0, atol=1e-11)
