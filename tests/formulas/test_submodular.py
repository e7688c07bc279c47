"""Submodular losses against their definitions on sets, and the laws of set functions."""

import pytest
import torch
import torch.nn.functional as F

from lossary.errors import DomainError, ShapeError
from lossary.formulas import submodular
from lossary.formulas.submodular import facility_location, graph_cut, log_det, total_correlation, total_information


def batch(rows, classes=5):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(classes, (rows,), generator=g)
    return torch.randn(rows, 4, generator=g, dtype=torch.float64) + F.one_hot(y, 13)[:, :4], y


def test_sets_are_their_definitions():
    x, y = batch(14, 4)
    u = F.normalize(x, dim=1)
    s = u @ u.T
    sets = [[i for i in range(14) if y[i] == c] for c in range(4) if (y == c).any()]

    def facility(a):
        return sum(max(s[i, j].item() for j in a) for i in range(14))

    def cut(a):
        return sum(s[i, j].item() for i in range(14) for j in a) - 0.5 * sum(s[i, j].item() for i in a for j in a)

    def volume(a):
        return torch.linalg.slogdet(s[a][:, a] + 0.5 * torch.eye(len(a), dtype=s.dtype))[1].item()

    for of, plain in ((facility_location, facility), (graph_cut, cut), (log_det, volume)):
        whole = sum(plain(a) for a in sets)
        assert total_information(x, y, of).item() == pytest.approx(whole, rel=1e-9)
        assert total_correlation(x, y, of).item() == pytest.approx(whole - plain(list(range(14))), rel=1e-9)


def test_graph_cut_correlation_is_the_similarity_between_classes():
    x, y = batch(14, 4)
    u = F.normalize(x, dim=1)
    between = (u @ u.T)[y[:, None] != y].sum()
    torch.testing.assert_close(total_correlation(x, y, submodular.with_lam(graph_cut, 0.7)), 0.7 * between)


def test_log_det_correlation_is_zero_only_for_classes_at_right_angles():
    y = torch.arange(4).repeat_interleave(3)
    eye = torch.eye(4, dtype=torch.float64)
    assert total_correlation(eye[y], y, log_det).item() == pytest.approx(0, abs=1e-12)
    x, _ = batch(12)
    assert total_correlation(x, y, log_det).item() > 0.1
    assert total_information(eye[:0], y[:0]).item() == 0


@pytest.mark.parametrize("of", [facility_location, graph_cut, log_det])
def test_sets_have_gradients(of):
    x, y = batch(10, 3)
    assert torch.autograd.gradcheck(lambda z: total_correlation(z, y, of), x.clone().requires_grad_(), atol=1e-5)


def test_set_functions_gain_less_from_more():
    """Submodular: a row adds no more to a larger set, on similarities that are not negative."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(9, 5, generator=g, dtype=torch.float64)
    u = F.normalize(x, dim=1)
    s = u @ u.T

    def gain(of, members, new):
        return of(s, torch.tensor([*members, new])) - of(s, torch.tensor(members))

    for of in (facility_location, graph_cut, log_det):
        assert gain(of, [0, 1], 8) >= gain(of, [0, 1, 2, 3], 8) - 1e-12


def test_wrong_input_is_one_clear_error():
    with pytest.raises(ShapeError):
        total_information(torch.eye(4), torch.arange(3))
    with pytest.raises(DomainError):
        submodular.with_lam(log_det, 0.0)
