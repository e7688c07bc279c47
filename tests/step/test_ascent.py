"""The two-pass engine and its rules: a closed form, slow twins from the papers, and what the engine promises."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from ascent_nets import RULES, batches, close, loss_of, mlp, same, sgd, weights
from torch import nn

import lossary
from lossary.errors import DomainError, MissingInput, ShapeError
from lossary.step import Ascent, Step, asam, awp, friendly_sam, gsam, random_perturbation, rules, rwp, sam
from lossary.step.engine import Memory


# --- what a step is ---------------------------------------------------------------------------------------------------
def test_on_a_quadratic_the_gradient_has_a_closed_form():
    h = torch.tensor([[3.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    w = model.weight.detach().clone().squeeze(0)
    step = Step(model, torch.optim.SGD(model.parameters(), lr=1.0), sam(0.3))
    loss = step(lambda: 0.5 * model.weight[0] @ h @ model.weight[0])
    g = h @ w
    torch.testing.assert_close(model.weight.detach()[0], w - h @ (w + 0.3 * g / g.norm()), rtol=0, atol=1e-11)
    torch.testing.assert_close(loss, 0.5 * w @ h @ w)
    assert not loss.requires_grad


def twin(name, batch_list):
    """Flat vectors, one at a time, by the papers' equations; the optimizer is written out too."""
    model = mlp()
    shapes = [p.shape for p in model.parameters()]
    w = torch.cat([p.detach().flatten() for p in model.parameters()])

    def grad(at, batch):
        parts = [x.view(s) for x, s in zip(at.split([s.numel() for s in shapes]), shapes, strict=True)]
        names = [n for n, _ in model.named_parameters()]
        at = {n: x.clone().requires_grad_() for n, x in zip(names, parts, strict=True)}
        loss = F.cross_entropy(torch.func.functional_call(model, at, batch[0]), batch[1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(at.values()))])

    velocity, mean = None, torch.zeros_like(w)
    for at, batch in enumerate(batch_list):
        g = grad(w, batch)
        if name in ("sam", "gsam"):
            e = 0.1 * g / g.norm()
        elif name == "asam":
            t = torch.diag(w.abs() + 0.01)
            e = 0.5 * t @ t @ g / (t @ g).norm()
        elif name in ("awp", "random_perturbation"):
            drawn, e = torch.Generator().manual_seed((5 * 1_000_003 + at) * 1_009), []
            sizes = [s.numel() for s in shapes]
            for shape, layer, slope in zip(shapes, w.split(sizes), g.split(sizes), strict=True):
                if name == "awp":
                    e.append(0.1 * layer.norm() * slope / slope.norm() * (len(shape) > 1))
                    continue
                filters = layer.view(shape) if len(shape) > 1 else layer[None]
                noise = torch.randn(shape, generator=drawn, dtype=w.dtype).view(filters.shape)
                e += [0.1 * f.norm() * n for f, n in zip(filters, noise, strict=True)]
            e = torch.cat(e)
        elif name == "rwp":
            large = torch.cat([torch.full((s.numel(),), float(len(s) > 1), dtype=w.dtype) for s in shapes])
            total, e = large * g, torch.zeros_like(w)
            for _ in range(2):
                e = 0.1 * (large * w).norm() * total / total.norm()
                total = total + large * grad(w + e, batch)
            e = 0.1 * (large * w).norm() * total / total.norm()
        else:
            mean = 0.7 * mean + 0.3 * g
            e = 0.1 * (g - 0.8 * mean) / (g - 0.8 * mean).norm()
        p = grad(w + e, batch)
        if name == "gsam":
            unit = p / p.norm()
            p = p - 0.3 * (g - (g @ unit) * unit)
        if name == "random_perturbation":
            p = 0.7 * p + 0.3 * g
        p = p + 1e-3 * w
        velocity = p if velocity is None else 0.9 * velocity + p
        w = w - 0.2 * velocity
    return w


@pytest.mark.parametrize("name", RULES)
def test_five_steps_are_those_of_a_twin_from_the_paper(name):
    model = mlp()
    step = Step(model, sgd(model), RULES[name]())
    for batch in batches():
        step(loss_of(model, batch))
    found = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(found, twin(name, batches()), rtol=0, atol=1e-9)
    assert (found - twin("asam" if name != "asam" else "sam", batches())).abs().max() > 1e-4  # the rules do differ


def test_a_rule_is_pure():
    g = torch.Generator().manual_seed(0)
    params, grads, means = ([torch.randn(3, 2, generator=g), torch.randn(4, generator=g)] for _ in range(3))
    before = copy.deepcopy((params, grads, means))
    for found in (
        rules.sam(params, grads, rho=0.1),
        rules.asam(params, grads, rho=0.1, eta=0.01),
        rules.friendly(params, grads, rho=0.1, sigma=1.0, means=means),
        rules.layerwise(params, grads, rho=0.1),
        rules.together(params, grads, rho=0.1),
        rules.random(params, grads, rho=0.1, generator=torch.Generator()),
        rules.without_orthogonal(params, grads, alpha=0.5),
    ):
        assert [f.shape for f in found] == [p.shape for p in params]
        assert all(same(x, y) for x, y in zip((params, grads, means), before, strict=True))
        assert not any(f is x for f in found for x in (*params, *grads, *means))


def test_norms_of_half_precision_do_not_overflow():
    grads = [torch.full((1000,), 3e4, dtype=torch.float16), torch.zeros(3, dtype=torch.float16)]
    (found, none) = rules.sam(grads, grads, rho=0.5)
    torch.testing.assert_close(found.float().norm(), torch.tensor(0.5), rtol=1e-3, atol=0)
    assert found.dtype == torch.float16
    assert not none.any()
    assert not rules.sam(grads, [torch.zeros(2)], rho=0.5)[0].any()  # no gradient, no displacement


def test_the_orthogonal_part_is_orthogonal():
    first, second = [torch.tensor([3.0, 1.0]), torch.tensor([2.0])], [torch.tensor([1.0, 1.0]), torch.tensor([1.0])]
    found = rules.without_orthogonal(first, second, alpha=1.0)
    assert same(found, [torch.tensor([0.0, 2.0]), torch.tensor([1.0])])  # share 2: second - (first - 2 second)


def test_a_layer_moves_by_its_own_length_and_biases_stay():
    g = torch.Generator().manual_seed(0)
    params, grads = ([torch.randn(5, 3, generator=g), torch.randn(5, generator=g)] for _ in range(2))
    filters, empty = torch.randn(2, 3, 3, 3, generator=g), torch.zeros(4, 4)
    params, grads = [*params, filters, empty], [*grads, torch.zeros_like(filters), torch.ones_like(empty)]
    found = rules.layerwise(params, grads, rho=[0.1, 0.1, 0.2, 0.3])
    torch.testing.assert_close(found[0].norm() / params[0].norm(), torch.tensor(0.1))
    torch.testing.assert_close(found[0] / found[0].norm(), grads[0] / grads[0].norm())
    assert not any(x.any() for x in found[1:])  # a bias; no gradient; no weight


def test_random_displacements_have_the_spread_of_their_filters():
    g = torch.Generator().manual_seed(0)
    filters = torch.randn(3, 20_000, generator=g) * torch.tensor([[1.0], [2.0], [0.0]])
    bias = torch.randn(20_000, generator=g)
    found = rules.random([filters, bias], [filters, bias], rho=0.1, generator=g)
    sizes = torch.stack([*filters, bias]).norm(dim=1)
    torch.testing.assert_close(torch.stack([*found[0], found[1]]).std(1), 0.1 * sizes, rtol=0.02, atol=0)
    assert torch.stack([*found[0], found[1]]).mean(1).abs().lt(4 * 0.1 * sizes / 20_000**0.5 + 1e-9).all()


def test_each_step_draws_another_displacement_and_alpha_0_is_the_plain_step():
    (batch,), moves = batches(1), []
    plain, model = mlp(), mlp()
    optimizer, step = sgd(plain), Step(model, sgd(model), random_perturbation(0.5, alpha=0.0))

    def closure():
        moves.append(model[0].weight.detach().clone())
        return loss_of(model, batch)()

    for _ in range(2):
        optimizer.zero_grad()
        loss_of(plain, batch)().backward()
        optimizer.step()
        step(closure)
    close(weights(plain), weights(model), rtol=0, atol=1e-15)
    assert not torch.allclose(moves[1] - moves[0], moves[3] - moves[2], rtol=0.2)


@pytest.mark.parametrize("name", RULES)
def test_a_radius_of_0_is_the_plain_step_to_the_bit(name):
    ascent = {
        "sam": sam(0),
        "asam": asam(0),
        "gsam": gsam(0),
        "friendly": friendly_sam(0),
        "awp": awp(0),
        "rwp": rwp(0),
        "random_perturbation": random_perturbation(0),
    }[name]
    plain, model = mlp(norm=True, dropout=0.3), mlp(norm=True, dropout=0.3)
    optimizer, step = sgd(plain), Step(model, sgd(model), ascent, clip=0.5)
    torch.manual_seed(3)
    for batch in batches():
        optimizer.zero_grad()
        loss_of(plain, batch)().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    torch.manual_seed(3)
    for batch in batches():
        step(loss_of(model, batch))
    assert same(plain.state_dict().values(), model.state_dict().values())


def test_without_the_same_noise_the_second_pass_draws_anew():
    found = []
    for same_noise in (True, False):
        model = mlp(dropout=0.5)
        torch.manual_seed(3)
        Step(model, sgd(model), sam(0), same_noise=same_noise)(loss_of(model, batches()[0]))
        found.append(weights(model))
    assert not same(*found)


# --- a loss of its own for the displacement ---------------------------------------------------------------------------
def easy(model, batch, threshold, seen=None):
    def closure():
        if seen is not None:
            seen.append(weights(model))
        items = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (items * (items < threshold)).mean()

    return closure


def test_uphill_displaces_and_the_closure_is_taken_there():
    (batch,), model, lone = batches(1), mlp(norm=True), mlp(norm=True)
    seen, at = [], []

    def closure():
        at.append(weights(model))
        return loss_of(model, batch)()

    loss = Step(model, sgd(model), rwp(0.2, steps=3))(closure, uphill=easy(model, batch, 1.1, seen))
    assert len(seen) == 3
    assert len(at) == 1
    large = [k for k, w in enumerate(at[0]) if w.ndim > 1]
    moves = [torch.cat([(b[k] - a[k]).flatten() for k in large]) for a, b in ((seen[0], at[0]), (seen[0], seen[1]))]
    size = torch.cat([seen[0][k].flatten() for k in large]).norm()
    for move in moves:
        torch.testing.assert_close(move.norm(), 0.2 * size)
    assert all(torch.equal(a, b) for k, (a, b) in enumerate(zip(seen[0], at[0], strict=True)) if k not in large)
    for p, w in zip(lone.parameters(), at[0], strict=True):
        p.data.copy_(w)
    torch.testing.assert_close(loss, loss_of(lone, batch)().detach())  # the loss where the closure ran
    assert same(model.buffers(), lone.buffers())  # and its statistics, once
    assert model[1].num_batches_tracked == 1


def test_where_all_is_hard_nothing_moves():
    (batch,), model, plain = batches(1), mlp(), mlp()
    optimizer = sgd(plain)
    loss_of(plain, batch)().backward()
    optimizer.step()
    Step(model, sgd(model), rwp(0.5))(loss_of(model, batch), uphill=easy(model, batch, 0.0))
    assert same(weights(model), weights(plain))


def test_uphill_over_micro_batches_is_that_of_the_whole_batch():
    (whole,), found = batches(1), []
    pieces = list(zip(whole[0].chunk(2), whole[1].chunk(2), strict=True))
    for parts in ([whole], pieces):
        model = mlp()
        step = Step(model, sgd(model), rwp(0.2, steps=2), accumulate=len(parts))
        step([loss_of(model, p) for p in parts], uphill=[easy(model, p, 1.1) for p in parts])
        found.append(weights(model))
    close(*found, rtol=0, atol=1e-11)


def test_uphill_that_does_not_fit_is_refused():
    (batch,), model = batches(1), mlp()
    for ascent in (None, gsam(0.1), random_perturbation()):
        with pytest.raises(DomainError, match="uphill"):
            Step(model, sgd(model), ascent)(loss_of(model, batch), uphill=loss_of(model, batch))
    with pytest.raises(ShapeError, match="uphill"):
        Step(model, sgd(model), rwp(), apart=True)([loss_of(model, batch)] * 2, uphill=loss_of(model, batch))
    with pytest.raises(DomainError):
        rwp(steps=0)
    with pytest.raises(DomainError, match="several steps"):
        Step(model, sgd(model), Ascent("many", rules.friendly, {"rho": 0.1, "sigma": 1.0}, decay=0.9, steps=2))


# --- parameters and groups --------------------------------------------------------------------------------------------
def test_groups_have_their_own_radius_and_the_norm_is_of_all():
    model = mlp()
    first, last = model[0].parameters(), model[-1].parameters()
    optimizer = torch.optim.SGD([{"params": list(first), "rho": 0.0}, {"params": list(last), "lr": 0.3}], lr=0.2)
    seen = []
    (batch,) = batches(1)

    def closure():
        seen.append(weights(model))
        return loss_of(model, batch)()

    step = Step(model, optimizer, sam(0.1))
    g = torch.autograd.grad(loss_of(model, batch)(), list(model.parameters()))
    size = torch.cat([x.flatten() for x in g]).norm()
    step(closure)
    assert same(seen[0][:2], seen[1][:2])
    close([b - a for a, b in zip(seen[0][2:], seen[1][2:], strict=True)], [0.1 * x / size for x in g[2:]])


def test_frozen_and_unused_parameters_are_left_alone():
    model = mlp()
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 5.0)
    model.unused = nn.Parameter(torch.ones(2))
    frozen, seen = model[0].weight.detach().clone(), []
    (batch,) = batches(1)

    def closure():
        seen.append((model[0].weight.detach().clone(), model.unused.detach().clone()))
        return F.cross_entropy(model(batch[0]), batch[1])

    trained = [p for p in model.parameters() if p.requires_grad]
    Step(model, torch.optim.AdamW(trained, weight_decay=0.1), sam(0.5))(closure)
    for weight, unused in (*seen, (model[0].weight, model.unused)):
        assert torch.equal(weight, frozen)
        assert torch.equal(unused, torch.ones(2))
    assert model.unused.grad is None
    assert (model[0].weight.grad == 5).all()


def test_parameters_of_another_optimizer_get_one_gradient_and_no_displacement():
    model = mlp()
    bias = model[-1].bias
    step = Step(model, torch.optim.SGD([p for p in model.parameters() if p is not bias], lr=0.0), sam(0.5))
    before, seen = bias.detach().clone(), []

    def closure():
        seen.append(bias.detach().clone())
        return loss_of(model, batches()[0])()

    step(closure)
    assert torch.equal(seen[1], before)
    step(closure)  # the learning rate is 0: the same point, and gradients do not pile up
    again = bias.grad.clone()
    step(closure)
    assert torch.equal(bias.grad, again)


def test_after_the_step_parameters_differ_by_the_step_alone():
    model = mlp()
    before, seen = weights(model), []

    def closure():
        seen.append(weights(model))
        return loss_of(model, batches()[0])()

    Step(model, sgd(model, lr=0.0), sam(0.3))(closure)
    assert same(seen[0], before)
    assert not same(seen[1], before)
    assert same(weights(model), before)


# --- what sees a batch once -------------------------------------------------------------------------------------------
def test_buffers_are_those_of_the_first_pass():
    plain, model = mlp(norm=True), mlp(norm=True)
    plain.register_buffer("calls", torch.zeros(()))
    model.register_buffer("calls", torch.zeros(()))
    (batch,) = batches(1)

    def closure():
        model.calls = model.calls + 1  # replaced, not changed in place
        return loss_of(model, batch)()

    plain(batch[0])
    Step(model, sgd(model), sam(0.5))(closure)
    assert same(plain[1].buffers(), model[1].buffers())
    assert model[1].num_batches_tracked == 1
    assert model.calls == 1
    assert model[1].training
    assert model[1].track_running_stats


def test_memory_and_trackers_of_an_objective_see_the_batch_once():
    def made():
        tracked = lossary.logit_adjustment(counts=lossary.memory.RunningFrequency(3, momentum=0.5))
        return tracked.watching(lossary.track.aum(8))

    ids, (batch,), model = torch.arange(8), batches(1), mlp()
    plain, ours, inside = made(), made(), made()
    plain(model(batch[0]), batch[1], ids=ids)
    Step(model, sgd(model), sam(0.5), objective=ours)(lambda: ours(model(batch[0]), batch[1], ids=ids))
    assert same(plain.state_dict().values(), ours.state_dict().values())
    assert not same(plain.state_dict().values(), made().state_dict().values())
    model = mlp()
    model.objective = inside  # an objective in the model is found
    Step(model, sgd(model), sam(0.5))(lambda: inside(model[:4](batch[0]), batch[1], ids=ids))
    assert same(plain.state_dict().values(), inside.state_dict().values())
    assert not inside._frozen


def test_a_learned_hyperparameter_is_trained():
    objective, model = lossary.focal(gamma=lossary.memory.Learned(2.0)), mlp()
    before = [p.detach().clone() for p in objective.parameters()]
    optimizer = torch.optim.SGD([*model.parameters(), *objective.parameters()], lr=0.1)
    x, y = batches(1)[0]
    Step(model, optimizer, sam(0.1), objective=objective)(lambda: objective(model(x), y))
    assert not same(before, objective.parameters())


@pytest.mark.parametrize("at", [2, 1], ids=["second pass", "first pass"])
def test_an_error_leaves_everything_where_it_was(at):
    model = mlp(norm=True)
    objective = lossary.cross_entropy()
    step = Step(model, sgd(model), friendly_sam(0.5), objective=objective)
    before, calls = weights(model), []

    def closure():
        calls.append(1)
        loss = loss_of(model, batches()[0])()
        if len(calls) == at:
            raise RuntimeError("out of memory, say")
        return loss

    with pytest.raises(RuntimeError, match="say"):
        step(closure)
    assert same(weights(model), before)
    assert not objective._frozen
    assert model[1].num_batches_tracked == 1
    assert step.memory == Memory()


def test_autocast_around_the_step_does_not_keep_weights_of_the_other_point():
    found = []
    for outside in (True, False):
        model = mlp().float()
        x, y = batches(1)[0]
        step = Step(model, sgd(model), sam(0.5))

        def cast(model=model, x=x, y=y, enabled=not outside):
            with torch.autocast("cpu", torch.bfloat16) if enabled else torch.enable_grad():
                return F.cross_entropy(model(x.float()).float(), y)

        with torch.autocast("cpu", torch.bfloat16) if outside else nullcontext():
            step(cast)
        found.append(weights(model))
    assert same(*found)


# --- accumulation -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RULES)
def test_closures_accumulate_to_the_step_of_the_whole_batch(name):
    found = []
    for parts in (1, 4):
        model = mlp()
        step = Step(model, sgd(model), RULES[name](), accumulate=parts)
        for x, y in batches(3):
            pieces = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
            loss = step([loss_of(model, piece) for piece in pieces])
        found.append([*weights(model), loss])
    close(*found, rtol=0, atol=1e-11)


def test_without_a_divisor_losses_are_summed():
    one, two = mlp(), mlp()
    (batch,) = batches(1)
    Step(one, sgd(one), sam(0.1))([loss_of(one, batch)] * 2)
    Step(two, sgd(two), sam(0.1))(lambda: 2 * loss_of(two, batch)())
    close(weights(one), weights(two), rtol=0, atol=1e-12)


def test_apart_each_micro_batch_has_its_own_displacement():
    model, (a, b) = mlp(), batches(2)
    want = []
    for batch in (a, b):
        lone = mlp()
        Step(lone, sgd(lone, lr=1.0, weight_decay=0.0), sam(0.3))(loss_of(lone, batch))
        want.append([w - v for w, v in zip(weights(mlp()), weights(lone), strict=True)])
    step = Step(model, sgd(model, lr=1.0, weight_decay=0.0), sam(0.3), accumulate=2, apart=True)
    step([loss_of(model, a), loss_of(model, b)])
    got = [w - v for w, v in zip(weights(mlp()), weights(model), strict=True)]
    close(got, [(x + y) / 2 for x, y in zip(*want, strict=True)], rtol=0, atol=1e-11)


# --- what is refused --------------------------------------------------------------------------------------------------
def test_wrong_arguments_are_one_clear_error():
    model = mlp()
    for make in (
        lambda: sam(-1),
        lambda: asam(eta=-1),
        lambda: friendly_sam(decay=1.0),
        lambda: gsam(alpha=-1),
        lambda: random_perturbation(alpha=2),
    ):
        with pytest.raises(DomainError):
            make()
    for wrong in ({"clip": 0.0}, {"accumulate": 0}):
        with pytest.raises(DomainError):
            Step(model, sgd(model), **wrong)
    with pytest.raises(MissingInput):
        Step(model, sgd(model))([])
    for closure in (lambda: 1.0, lambda: model(batches()[0][0]), lambda: torch.ones(())):
        with pytest.raises(ShapeError, match="a closure returns the loss"):
            Step(model, sgd(model))(closure)
    table = nn.Embedding(5, 2, sparse=True)
    with pytest.raises(DomainError, match="sparse"):
        Step(table, torch.optim.SGD(table.parameters(), lr=0.1))(lambda: table(torch.tensor([1])).sum())
