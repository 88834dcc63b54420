"""Softmax of moments: class probabilities against quadrature and Monte Carlo, in every form of the operation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import nn

from bnnzoo.moments import Moments, options, propagate
from bnnzoo.moments.softmax import log_of_softmax, log_softmax, softmax
from tests.statistical import assert_mean

KINDS = ["normal", "logistic", "simplified", "exact"]


def logits(*shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return mean, (scale * (0.2 + torch.rand(*shape, generator=generator, dtype=torch.float64))) ** 2


@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 3.0, 8.0])
def test_exact_probabilities_of_two_classes_are_those_of_quadrature(scale):
    """Two classes are a sigmoid of one Gaussian."""
    mean, variance = logits(6, 2, scale=scale)
    moments = softmax(Moments(mean, variance), 1, "exact")
    for row in range(len(mean)):
        center, std = (mean[row, 0] - mean[row, 1]).item(), variance[row].sum().sqrt().item()

        def moment(power, center=center, std=std):
            def at(z):
                return (1 / (1 + np.exp(-(center + std * z)))) ** power * stats.norm.pdf(z)

            return integrate.quad(at, -10, 10, points=[-center / std] if abs(center / std) < 10 else None, limit=200)[0]

        first = moment(1)
        assert moments.loc[row, 0].item() == pytest.approx(first, abs=1e-6)
        assert moments.variance[row, 0].item() == pytest.approx(moment(2) - first**2, abs=5e-5)


@pytest.mark.parametrize(("classes", "scale"), [(3, 0.1), (5, 1.0), (10, 3.0), (10, 10.0), (30, 1.0)])
def test_exact_moments_of_many_classes_are_those_of_draws(classes, scale):
    mean, variance = logits(classes, scale=scale)
    torch.manual_seed(1)
    draws = (mean + variance.sqrt() * torch.randn(100_000, classes).double()).softmax(-1)
    moments = softmax(Moments(mean, variance), 0, "exact")
    assert_mean(draws, moments.loc, 200)
    assert_mean((draws - moments.loc).square(), moments.variance, 200, "variance")
    in_single = log_softmax(mean.float(), variance.float(), 0, "exact")
    torch.testing.assert_close(in_single.exp().double(), moments.loc, rtol=0, atol=2e-6)


def test_the_papers_formulas():
    mean, variance = logits(4)
    unit = math.pi**2 / 3
    for kind in ("normal", "logistic"):
        weights = []
        for y in range(4):
            others = [k for k in range(4) if k != y]
            totals = [(variance[y] + variance[k]).item() for k in others]
            spread = [math.sqrt(v + unit) if kind == "normal" else math.sqrt(v / unit + 1) for v in totals]
            scores = [(mean[y] - mean[k]).item() / s for k, s in zip(others, spread, strict=True)]
            if kind == "normal":
                weights.append(np.prod(stats.norm.cdf(scores)))
            else:
                weights.append(1 / (1 + sum(math.exp(-score) for score in scores)))
        expected = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        torch.testing.assert_close(log_softmax(mean, variance, 0, kind).exp(), expected)
    simple = log_softmax(mean, variance, 0, "simplified")
    torch.testing.assert_close(simple, (mean / (variance / unit + 1).sqrt()).log_softmax(0))


def test_at_zero_variance_it_is_the_softmax():
    mean, _ = logits(5, 7)
    for kind in ("logistic", "simplified", "exact"):
        found = log_softmax(mean, torch.zeros_like(mean), 1, kind)
        torch.testing.assert_close(found, mean.log_softmax(1), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_size_have_finite_probabilities_and_gradients(kind):
    rows = [[0.0, 0.0, 0.0], [1e4, 0.0, -1e4], [1e4, 1e4, 0.0], [-3.0, 50.0, 49.0]]
    for variance in (0.0, 1e-12, 1e-6, 1.0, 100.0):
        mean = torch.tensor(rows).requires_grad_()
        spread = torch.full_like(mean, variance).requires_grad_()
        with options(softmax=kind):
            x = Moments(mean, spread)
            p, log_p = F.softmax(x, 1), F.log_softmax(x, 1)
        values = [p.loc, p.variance, log_p.loc, log_p.variance]
        assert all(each.isfinite().all() for each in values)
        assert (p.variance >= 0).all()
        assert (p.variance <= p.loc * (1 - p.loc) + 1e-6).all()
        assert (log_p.variance >= 0).all()
        torch.testing.assert_close(p.loc.sum(1), torch.ones(4))
        for each in values:
            if each.requires_grad:
                gradients = torch.autograd.grad(each.sum(), (mean, spread), retain_graph=True, allow_unused=True)
                assert all(g is None or g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind):
    mean, variance = (each[:2, :3].clone().requires_grad_() for each in logits(4, 4))
    assert torch.autograd.gradcheck(lambda m, v: log_softmax(m, v, 1, kind), (mean, variance))

    def both(m, v):
        p = softmax(Moments(m, v), 1, kind)
        return p.loc, p.variance

    assert torch.autograd.gradcheck(both, (mean, variance))


def test_variances_are_the_linearizations_where_these_are_small():
    mean, variance = logits(6, 5, scale=0.01)
    x = Moments(mean, variance)
    slopes = torch.func.vmap(torch.func.jacrev(lambda m: m.softmax(-1)))(mean)
    expected = (slopes.square() @ variance.unsqueeze(-1)).squeeze(-1)
    for kind in ("logistic", "exact"):
        torch.testing.assert_close(softmax(x, 1, kind).variance, expected, rtol=2e-3, atol=1e-12)
    slopes = torch.func.vmap(torch.func.jacrev(lambda m: m.log_softmax(-1)))(mean)
    expected = (slopes.square() @ variance.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_of_softmax(x, 1).variance, expected, rtol=2e-3, atol=0)


def test_standard_deviations_are_as_good_as_stated():
    for scale in (0.5, 1.0, 3.0, 10.0):
        mean, variance = logits(30, 10, scale=scale)
        x = Moments(mean, variance)
        ratio = softmax(x, 1, "logistic").scale.mean() / softmax(x, 1, "exact").scale.mean()
        assert 0.92 < ratio < 1.1


def test_every_spelling_takes_the_chosen_kind():
    mean, variance = logits(3, 4, 2)
    x = Moments(mean, variance)
    for kind in KINDS:
        with options(softmax=kind):
            expected = log_softmax(mean, variance, 1, kind)
            for found in (F.log_softmax(x, 1), torch.log_softmax(x, 1), x.log_softmax(dim=1), nn.LogSoftmax(1)(x)):
                torch.testing.assert_close(found.loc, expected)
            for found in (F.softmax(x, 1), torch.softmax(x, 1), x.softmax(-2), nn.Softmax(1)(x), F.softmin(-x, 1)):
                torch.testing.assert_close(found.loc, expected.exp())
                assert found.shape == mean.shape
        network = nn.Sequential(nn.Identity(), nn.Softmax(1))
        torch.testing.assert_close(propagate(network, mean, variance, softmax=kind).loc, expected.exp())
    assert torch.softmax(x, 1, torch.float32).dtype == torch.float32
    assert torch.equal(F.softmax(x, 1).loc, softmax(x, 1, "logistic").loc)
    certain = F.softmax(Moments(mean), 1)
    assert certain.certain
    assert torch.equal(certain.loc, mean.softmax(1))
    with pytest.raises(ValueError, match="softmax must be one of 'normal', 'logistic', 'simplified', 'exact', not 'x'"):
        options(softmax="x").__enter__()


def test_the_negative_log_likelihood_of_means_is_the_papers():
    mean, variance = logits(6, 4)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    loss = F.nll_loss(nn.LogSoftmax(1)(Moments(mean, variance)).loc, y)
    torch.testing.assert_close(loss, -log_softmax(mean, variance, 1)[torch.arange(6), y].mean())


@pytest.mark.parametrize("kind", KINDS)
def test_under_vmap(kind):
    mean, variance = logits(3, 2, 4)

    def one(m, v):
        with options(softmax=kind):
            p = F.softmax(Moments(m, v), -1)
        return p.loc, p.variance

    for mapped, plain in zip(torch.func.vmap(one)(mean, variance), one(mean, variance), strict=True):
        torch.testing.assert_close(mapped, plain)


@pytest.mark.parametrize("way", ["sensitivity", "full"])
def test_with_covariances(way):
    """Probabilities sum to 1: their covariances with each other to 0."""
    mean, variance = (each.float() for each in logits(3, 4, scale=0.3))
    network = nn.Sequential(nn.Linear(4, 5), nn.Softmax(-1))
    found = propagate(network, mean, variance, covariance=way)
    torch.manual_seed(0)
    draws = network(mean + variance.sqrt() * torch.randn(20_000, 3, 4)).detach()
    truth = torch.stack([draws[:, n].T.cov() for n in range(3)])
    assert (found.covariance - truth).norm() < 0.25 * truth.norm()
