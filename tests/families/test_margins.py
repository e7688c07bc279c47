"""Margins on cosines: the head, the formulas against the trigonometry they stand for, and what must stay finite."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import lossary
from lossary.catalogue import evidence
from lossary.errors import DomainError, LossaryError, MissingInput, ShapeError
from lossary.formulas.margins import falling, proxy_anchor
from lossary.heads import CosineHead, batch_negatives, hash_codes
from lossary.memory import FeatureNorms
from lossary.workbench.studies import FOLDER

MARGINS = ("arcface", "cosface", "sphereface", "combined_margin", "adaface", "circle_classes", "proxy_nca")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(rows=12, d=6, classes=4, seed=0):
    g = seeded(seed)
    return torch.randn(rows, d, generator=g, dtype=torch.float64), torch.randint(classes, (rows,), generator=g)


def head_of(d=6, classes=4, sub_centers=1, **more):
    return CosineHead(d, classes, sub_centers, seeded(5), **more).double()


# --- formulas --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", MARGINS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_of_the_cosine_are_finite(key, dtype):
    ends = torch.tensor(
        [[1, -1, 0.5], [-1, 1, 0], [1, 1, 1], [-1, -1, -1], [0.9995, 0.1, 0], [1.0005, 0, 0]], dtype=dtype
    )
    ends.requires_grad_()
    loss = lossary.find(key)().items(ends, torch.tensor([0, 0, 1, 1, 0, 0])).loss
    loss.sum().backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert loss.isfinite().all()
    assert ends.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_to_an_embedding_stays_small_where_that_to_the_cosine_does_not(dtype):
    """d cos(theta + m) / d cos theta grows as 1 / sin theta; along the sphere it is the sine of theta + m."""
    w = torch.eye(3, dtype=dtype)
    for theta in (1e-1, 1e-2, 1e-3, 3e-3):
        x = torch.tensor([[math.cos(theta), math.sin(theta), 0]], dtype=dtype, requires_grad=True)
        head = CosineHead.fixed(w).to(dtype)
        loss = lossary.arcface(scale=1.0).items(head(x), torch.tensor([0])).loss
        loss.backward()
        p = (-loss.detach()).exp()
        others = (1 - p).item()
        assert x.grad.norm().item() < 2.5 * others  # p_k times the angles' own slopes, at most 1 each


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5])
def test_arcface_is_the_added_angle_up_to_pi_and_goes_on_falling(margin):
    theta = torch.linspace(0, math.pi, 1001, dtype=torch.float64)
    logits = torch.stack([theta.cos(), torch.full_like(theta, -5.0)], -1)  # against a class that costs nothing
    target = torch.zeros(len(theta), dtype=torch.long)
    own = -lossary.arcface(scale=1.0, margin=margin).items(logits, target).loss.expm1().log() - 5  # back to the logit
    inside = theta + margin < math.pi
    torch.testing.assert_close(own[inside], (theta + margin).cos()[inside], rtol=1e-9, atol=1e-9)
    assert (own.diff() < 1e-12).all(), "a larger angle must never be the better one"
    assert own.diff().abs().max() < 8e-3, "no jump, also not at pi"


def test_psi_falls_smoothly():
    a = torch.linspace(0, 12, 20001, dtype=torch.float64, requires_grad=True)
    value = falling(a)
    (slope,) = torch.autograd.grad(value.sum(), a)
    assert (slope <= 1e-12).all()
    assert slope.diff().abs().max() < 1e-3
    torch.testing.assert_close(value[:5000], a[:5000].cos())
    for k in range(4):  # A-Softmax: -(2k - 1) and on at k pi
        assert falling(torch.tensor(k * math.pi + 1e-9, dtype=torch.float64)).item() == pytest.approx(1 - 2 * k)


def test_the_margins_are_settings_of_one_formula():
    x, y = draw()
    f = head_of()(x)
    items = lambda loss: loss.items(f, y).loss  # noqa: E731
    one = lossary.combined_margin
    torch.testing.assert_close(items(one(64.0, 1.0, 0.4, 0.0)), items(lossary.arcface(margin=0.4)))
    torch.testing.assert_close(items(one(64.0, 1.0, 0.0, 0.4)), items(lossary.cosface(margin=0.4)))
    torch.testing.assert_close(items(one(30.0, 1.7, 0.0, 0.0)), items(lossary.sphereface(margin=1.7)))
    torch.testing.assert_close(items(lossary.normface(16.0)), F.cross_entropy(16 * f, y, reduction="none"))
    torch.testing.assert_close(items(lossary.proxy_nca_pp()), F.cross_entropy(18 * f, y, reduction="none"))
    counts = torch.ones(4)
    torch.testing.assert_close(items(lossary.cosface()), items(lossary.ldam(counts=counts, max_m=0.35, scale=64.0)))


@pytest.mark.parametrize("key", [k for k in MARGINS if k != "circle_classes"])
def test_gradients_near_the_ends_are_derivatives(key):
    theta = torch.tensor([0.02, 0.4, 1.5, 2.4, 3.12], dtype=torch.float64)
    f = torch.stack([theta.cos(), 0.3 * theta.sin()], -1).requires_grad_()
    loss = lossary.find(key)(scale=4.0)
    torch.autograd.gradcheck(lambda z: loss.items(z, torch.zeros(5, dtype=torch.long)).loss, f, eps=1e-8, rtol=1e-3)


def test_circle_has_the_gradient_of_the_paper():
    """Equation 10: the slope of each similarity is its softmax share times its own weight, as if that were constant."""
    g, m = 32.0, 0.25
    f = (head_of()(draw()[0])).detach().requires_grad_()
    y = draw()[1]
    value = lossary.circle_classes(scale=g, margin=m).items(f, y).loss
    (grad,) = torch.autograd.grad(value.sum(), f)
    for i, k in enumerate(y.tolist()):
        s = f[i].detach()
        other = [j for j in range(4) if j != k]
        up, down = (1 + m - s[k]).clamp(min=0), (s[other] + m).clamp(min=0)
        total = (g * down * (s[other] - m)).logsumexp(0) - g * up * (s[k] - 1 + m)
        torch.testing.assert_close(value[i].detach(), F.softplus(total))
        z = total.sigmoid()
        torch.testing.assert_close(grad[i, k], -z * g * up)
        torch.testing.assert_close(grad[i, other], z * g * down * (g * down * (s[other] - m)).softmax(0))


def test_soft_labels_try_each_label_with_its_own_margin():
    f, y = head_of()(draw()[0]), draw()[1]
    share = torch.tensor([0.7, 0.3], dtype=torch.float64)
    label = share[0] * F.one_hot(y, 4) + share[1] * F.one_hot((y + 1) % 4, 4)
    loss = lossary.arcface(scale=8.0)
    both = share[0] * loss.items(f, y).loss + share[1] * loss.items(f, (y + 1) % 4).loss
    torch.testing.assert_close(loss.items(f, label).loss, both)


# --- proxies ---------------------------------------------------------------------------------------------------------
def test_proxy_anchor_by_its_sums():
    x, y = draw(classes=3)
    s = head_of(classes=5)(x).detach().requires_grad_()
    a, d, up, down = 8.0, 0.1, [], []
    for k in range(5):
        own = [s[i, k] for i in range(12) if y[i] == k]
        rest = [s[i, k] for i in range(12) if y[i] != k]
        if own:
            up.append((1 + sum((-a * (c - d)).exp() for c in own)).log())
        down.append((1 + sum((a * (c + d)).exp() for c in rest)).log())
    wanted = sum(up) / len(up) + sum(down) / 5
    got = proxy_anchor(s, y, scale=a, margin=d)
    torch.testing.assert_close(got, wanted)
    (one,), (two,) = torch.autograd.grad(got, s, retain_graph=True), torch.autograd.grad(wanted, s)
    torch.testing.assert_close(one, two)
    keep = torch.arange(12) % 3 > 0
    dirty = s.detach().where(keep[:, None], torch.nan)
    torch.testing.assert_close(proxy_anchor(dirty, y, valid=keep), proxy_anchor(s[keep], y[keep]))
    extreme = torch.tensor([[1.0, -1.0]], dtype=torch.float16, requires_grad=True)
    proxy_anchor(extreme, torch.tensor([1]), scale=1e4).backward()
    assert extreme.grad.isfinite().all()
    assert proxy_anchor(s[:0], y[:0]).item() == 0
    with pytest.raises(ShapeError):
        proxy_anchor(s, y.double())


# --- the head --------------------------------------------------------------------------------------------------------
def test_cosines_are_cosines_and_survive_zeros_and_half_precision():
    x, _ = draw()
    head = head_of()
    wanted = F.cosine_similarity(x[:, None], head.weight[:, 0][None], dim=-1)
    torch.testing.assert_close(head(x), wanted)
    torch.testing.assert_close(head(1e-8 * x), wanted)
    assert head(x.reshape(3, 4, 6)).shape == (3, 4, 4)
    for dtype in (torch.float16, torch.float32):
        low = torch.zeros(2, 6, dtype=dtype, requires_grad=True)
        made = CosineHead(6, 4, generator=seeded())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cosines = made(low)
        assert cosines.dtype == torch.float32
        lossary.arcface()(cosines, torch.tensor([0, 1])).backward()
        assert low.grad.isfinite().all()
        assert made.weight.grad.isfinite().all()
    with pytest.raises(ShapeError):
        head(x[:, :5])


def test_sub_centres_are_pooled():
    x, y = draw()
    hard, soft = head_of(sub_centers=3), head_of(sub_centers=3, softness=0.1)
    each = F.cosine_similarity(x[:, None, None], hard.weight[None], dim=-1)
    torch.testing.assert_close(hard(x), each.amax(-1))
    torch.testing.assert_close(soft(x), ((each / 0.1).softmax(-1) * each).sum(-1))
    w = F.normalize(hard.weight, dim=-1)
    far = [(w[c, i] - w[c, j]).norm() for c in range(4) for i in range(3) for j in range(i)]
    assert hard.spread().item() == pytest.approx(sum(far).item() / (4 * 3 * 2), rel=1e-4)
    assert head_of().spread().item() == 0
    lossary.soft_triple()(soft(x), y).backward()
    assert soft.weight.grad.abs().sum() > 0
    with torch.no_grad():
        hard.weight[:, 1:] = hard.weight[:, :1]
    hard.spread().backward()  # centres that fell together
    assert hard.weight.grad.isfinite().all()


def test_sampled_centres_are_the_batchs_own_and_others():
    x, _ = draw(rows=10)
    y = torch.tensor([7, 3, 3, 90, 41, 7, -100, 99, 0, 3])
    head = head_of(classes=100, sample=20)
    cosines, number = head(x, y, seeded(1))
    assert cosines.shape == (10, 20)
    assert number[6] == -100
    whole = head(x)
    kept = y >= 0
    torch.testing.assert_close(
        cosines.gather(1, number.clamp(min=0)[:, None]).squeeze(1)[kept],
        whole.gather(1, y.clamp(min=0)[:, None]).squeeze(1)[kept],
    )
    assert torch.equal(head(x, y, seeded(1))[0], cosines)
    assert not torch.equal(head(x, y, seeded(2))[0], cosines)
    lossary.cosface()(cosines, number).backward()
    touched = head.weight.grad.abs().sum((1, 2)) > 0
    assert touched.sum() == 20
    assert touched[[7, 3, 90, 41, 99, 0]].all()
    few = head_of(classes=100, sample=3)(x, y)[0]
    assert few.shape == (10, 10), "never fewer than the batch may need"
    head.eval()
    again, same = head(x, y)
    assert again.shape == (10, 100)
    assert torch.equal(same, y)
    nobody, _ = head_of(classes=9, sample=4)(x, torch.full((10,), -100), seeded())
    assert nobody.shape == (10, 9)


def test_sampled_others_are_drawn_evenly():
    head, g = head_of(classes=20, sample=8), seeded(3)
    x, y = torch.ones(2, 6, dtype=torch.float64), torch.tensor([4, 11])
    head.weight.requires_grad_(False)
    count = torch.zeros(20)
    for _ in range(600):
        cosines, _ = head(x, y, g)
        count += torch.isin(head(x)[0], cosines[0])
    assert count[4] == count[11] == 600
    others = count[[k for k in range(20) if k not in (4, 11)]]
    assert (others / 600 - 6 / 18).abs().max() < 0.09


def test_head_and_loss_compile_as_one_graph():
    head, loss = CosineHead(6, 30, sub_centers=2, generator=seeded(), sample=12), lossary.arcface()
    x, y = draw(rows=5, classes=30)
    torch._dynamo.reset()
    step = torch.compile(lambda x, y: loss(*head(x, y)), fullgraph=True, backend="eager", dynamic=False)
    step(x.float(), y).backward()
    assert head.weight.grad.isfinite().all()
    head.eval()
    plain = loss(head(x.float()), y)
    torch.testing.assert_close(step(x.float(), y), plain)


# --- AdaFace ---------------------------------------------------------------------------------------------------------
def ada_step(norms, head, loss, seed):
    x, y = draw(rows=9, seed=seed)
    return loss(head(norms(x.float())), y)


def test_the_norms_are_those_of_the_stream():
    """Mean and unbiased std, the batch's own share 0.01; quality is 0.333 (|x| - mean) / (std + 0.001), clipped."""
    norms = FeatureNorms().double()
    loss, head = lossary.adaface(quality=norms), head_of()
    mean, std = 20.0, 100.0
    for seed, scale in enumerate((1.0, 8.0, 0.0, 500.0)):
        x, y = draw(rows=9, seed=seed)
        got = loss(head(norms(scale * x)), y)
        length = (scale * x).norm(dim=1).clamp(0.001, 100)
        mean, std = 0.99 * mean + 0.01 * length.mean().item(), 0.99 * std + 0.01 * length.std().item()
        z = (0.333 * (length - mean) / (std + 1e-3)).clamp(-1, 1)
        assert norms.mean.item() == pytest.approx(mean)
        assert norms.std.item() == pytest.approx(std)
        torch.testing.assert_close(norms.value(), z)
        f = head(scale * x)
        own = ((f.gather(1, y[:, None]).squeeze(1).acos() - 0.4 * z).cos() - 0.4 * (1 + z))[:, None]
        wanted = F.cross_entropy(64 * torch.where(F.one_hot(y, 4) > 0, own, f), y)
        torch.testing.assert_close(got, wanted)


def test_the_norms_move_only_in_training_and_not_when_frozen():
    norms = FeatureNorms()
    loss, head = lossary.adaface(quality=norms), CosineHead(6, 4, generator=seeded())
    state = lambda: (norms.mean.item(), norms.std.item())  # noqa: E731
    start = state()
    norms(torch.ones(3, 6))
    assert state() == start, "looking is not yet keeping"
    ada_step(norms, head, loss, 0)
    after = state()
    assert after != start
    with loss.frozen():
        ada_step(norms, head, loss, 1)
    assert state() == after
    loss.eval()
    quiet = ada_step(norms, head, loss, 2)
    assert state() == after
    assert torch.equal(quiet, ada_step(norms, head, loss, 2))
    loss.train()
    norms.eval()  # the model in eval mode, the loss not
    ada_step(norms, head, loss, 3)
    assert state() == after
    x = draw(rows=9, seed=4)[0].float()
    norms(x)
    together = norms.value()
    norms(x[:2])
    torch.testing.assert_close(norms.value(), together[:2], rtol=0, atol=0)  # in eval mode nobody else has a say
    norms.train()
    norms(5 * x)
    norms.eval()
    norms.update(None)
    assert state() == after
    norms.train()
    again = FeatureNorms()
    again.load_state_dict(norms.state_dict())
    assert (again.mean.item(), again.std.item()) == after


def test_one_row_masked_rows_and_soft_labels():
    norms = FeatureNorms()
    loss, head = lossary.adaface(quality=norms), CosineHead(6, 4, generator=seeded())
    with pytest.raises(MissingInput):
        loss(torch.zeros(2, 4), torch.tensor([0, 1]))
    start = norms.std.item()
    loss(head(norms(torch.ones(1, 6))), torch.tensor([0]))  # one row has no spread
    assert norms.std.item() == start
    x, y = (t.float() if t.is_floating_point() else t for t in draw(rows=6))
    x[2] = torch.nan
    keep = torch.arange(6) != 2
    value = loss(head(norms(x, valid=keep)), y, valid=keep)
    assert value.isfinite()
    mean = norms.mean.item()
    other = FeatureNorms()
    assert lossary.adaface(quality=other)(head(other(x[keep])), y[keep]).item() == pytest.approx(value.item(), rel=1e-5)
    assert other.mean.item() == pytest.approx(mean)
    hard = loss.items(head(norms(x[keep])), y[keep]).loss
    soft = loss.items(head(norms(x[keep])), F.one_hot(y[keep], 4).float()).loss
    torch.testing.assert_close(soft, hard)
    with pytest.raises(DomainError):
        FeatureNorms(rate=0.0)


def test_quality_carries_no_gradient_to_the_length():
    norms, head = FeatureNorms().double(), head_of()
    x, y = draw()
    x.requires_grad_()
    lossary.adaface(quality=norms)(head(norms(x)), y).backward()
    along = (x.grad * x).sum(-1)
    assert along.abs().max() < 1e-10, "the gradient must lie across the embedding"


# --- UNPG ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("whisker", [0.2, 0.7, 1.5])
def test_one_column_stands_for_all_pairs(whisker):
    x, y = draw(rows=14)
    x.requires_grad_()
    head = head_of()
    u = F.normalize(x, dim=-1)
    pairs = torch.stack([u[i] @ u[j] for i in range(14) for j in range(i + 1, 14) if y[i] != y[j]])
    ranked = pairs.sort().values
    low, high = ranked[int(0.25 * len(pairs))], ranked[int(0.75 * len(pairs))]
    reach = whisker * (high - low)
    kept = pairs[(pairs >= low - reach) & (pairs <= high + reach)]
    assert (len(kept) < len(pairs)) == (whisker < 1)
    cosines = head(x)
    many = lossary.arcface()(torch.cat([cosines, kept.expand(14, -1)], 1), y)
    one = lossary.arcface()(torch.cat([cosines, batch_negatives(x, y, whisker=whisker)], 1), y)
    torch.testing.assert_close(one, many)
    (a,), (b,) = torch.autograd.grad(one, x, retain_graph=True), torch.autograd.grad(many, x)
    torch.testing.assert_close(a, b)


def test_a_batch_without_other_labels_has_no_pairs():
    x = draw()[0].requires_grad_()
    y = torch.zeros(12, dtype=torch.long)
    head = head_of()
    with_column = lossary.cosface()(torch.cat([head(x), batch_negatives(x, y)], 1), y)
    torch.testing.assert_close(with_column, lossary.cosface()(head(x), y))
    with_column.backward()
    assert x.grad.isfinite().all()
    assert batch_negatives(x[:1], y[:1]).shape == (1, 1)
    with pytest.raises(ShapeError):
        batch_negatives(x, y[:3])


# --- OrthoHash -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("classes", "bits"), [(10, 16), (16, 16), (10, 12), (40, 32), (4, 2), (1, 1)])
def test_codes_are_binary_different_and_orthogonal_where_they_can_be(classes, bits):
    codes = hash_codes(classes, bits, seeded(2))
    assert codes.shape == (classes, bits)
    assert ((codes == 1) | (codes == -1)).all()
    assert len(codes.unique(dim=0)) == classes
    if classes <= bits and bits & (bits - 1) == 0:
        assert torch.equal(codes @ codes.T, bits * torch.eye(classes))
    assert torch.equal(codes, hash_codes(classes, bits, seeded(2)))


def test_fixed_codes_are_not_trained():
    codes = hash_codes(4, 8, seeded())
    head = CosineHead.fixed(codes)
    assert not any(p.requires_grad for p in head.parameters())
    torch.testing.assert_close(head(codes), torch.eye(4))
    x = torch.randn(5, 8, generator=seeded(), requires_grad=True)
    lossary.orthohash()(head(x), torch.tensor([0, 1, 2, 3, 0])).backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(DomainError):
        hash_codes(5, 2)


@pytest.mark.parametrize("given", [{"sub_centers": 0}, {"softness": -1.0}, {"sample": 0}])
def test_bad_heads_have_their_error(given):
    with pytest.raises(LossaryError):
        CosineHead(6, 4, **given)


# --- studies ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["circle_classes", "orthohash"])
def test_its_study_is_stored_and_whole(name):
    result = json.loads(Path(FOLDER, "results", f"{name}.json").read_text())
    assert {"claim", "rows", "methods", "versions", "setting", "seeds", "figures", "verdict"} <= set(result)
    assert result["verdict"] in evidence.VERDICTS
    assert result["study"] == name.replace("_", "-")
    assert result["versions"] == evidence.versions(result["versions"]), "made with the code as it is"
