"""KL(q || prior): for every prior family, over flat blocks of sites as site by site, against quadrature."""

import math
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from statistical import assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods, priors
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.objectives import Sites, divergence, kl_terms
from bnnzoo.weights import FlatNormal

COMPARISONS = 1000


def runs(bnn, guide, x, y):
    guide_sites = Sites(form="structured")
    q = guide_sites.run(guide, x, y)
    return q, Sites(guide_sites.drawn).run(bnn, x, y)


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


PRIORS = {
    "normal": dist.Normal(0.3, 0.8),
    "laplace": dist.Laplace(-0.2, 0.8),
    "student t": dist.StudentT(3.0, 0.2, 0.7),
    "cauchy": dist.Cauchy(0.2, 0.7),
    "scale mixture": priors.ScaleMixture(0.3, 1.0, 0.2),
    "fan-in": priors.FanIn(0.8),
    "he": priors.He(),
    "normals of many scales": {
        "0.*": dist.Normal(0.1, 0.5),
        "2.weight": dist.Normal(torch.tensor([[0.1, -0.4, 0.7]]), 1.0),
        "*": dist.Normal(0.0, 2.0),
    },
    "laplaces of many scales": {"0.*": dist.Laplace(0.1, 0.5), "*": dist.Laplace(0.0, 2.0)},
    "mixed families": {
        "0.weight": dist.Normal(0.0, 1.0),
        "0.bias": dist.Laplace(0.0, 1.0),
        "2.weight": dist.StudentT(4.0, 0.0, torch.tensor([[0.5, 1.0, 2.0]])),
        "2.bias": dist.Normal(0.5, 0.2),
    },
    "interleaved families": {"*.bias": dist.Laplace(0.0, 1.0), "*": dist.Normal(0.0, 1.0)},
}
ANALYTIC = {
    "normal",
    "laplace",
    "fan-in",
    "he",
    "normals of many scales",
    "laplaces of many scales",
    "interleaved families",
}


def exact_divergence(bnn: BayesianNetwork, guide: guides.MeanField) -> Tensor:
    """KL(q || p) by the trapezoid rule, weight by weight."""
    total = torch.zeros((), dtype=torch.float64)
    locs, log_scales = (guide.layout.split(flat.detach()) for flat in (guide.loc, guide.log_scale))
    for name, loc, log_scale in zip(guide.layout.names, locs, log_scales, strict=True):
        q = dist.Normal(loc, log_scale.exp())
        grid = q.loc + q.scale * torch.linspace(-9, 9, 20_001, dtype=torch.float64).view(-1, *[1] * loc.dim())
        prior = bnn.priors[name]
        integrand = q.log_prob(grid).exp() * (q.log_prob(grid) - prior.log_prob(grid))
        total += (integrand.sum(0) * q.scale * 18 / 20_000).sum()
    return total


@pytest.mark.parametrize("by", ["block", "site"])
@pytest.mark.parametrize("name", PRIORS)
def test_divergences_equal_quadrature(name, by, monkeypatch):
    """Over flat blocks as over single sites; analytic where a KL is registered, on average where not."""
    bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5), PRIORS[name])
    guide = guides.MeanField(bnn)
    with torch.no_grad():
        guide.log_scale.uniform_(-2.0, 0.0)
    if by == "site":
        monkeypatch.setattr(divergence, "_shared_block", lambda *_: None)
    x, y = torch.randn(3, 2).double(), torch.zeros(3).double()
    exact = exact_divergence(bnn, guide)
    terms = kl_terms(*runs(bnn, guide, x, y))
    assert len(terms) == (len(bnn.blocks) if by == "block" else 4)
    if name in ANALYTIC:
        torch.testing.assert_close(sum(terms), exact, rtol=1e-6, atol=1e-6)
    else:
        with torch.no_grad(), pyro_settings(guide):
            draws = vectorize(lambda _: sum(kl_terms(*runs(bnn, guide, x, y))))(torch.arange(5000))
        assert draws.std() > 0
        assert_mean(draws, exact, COMPARISONS, "KL")


def test_priors_of_one_family_share_a_block_and_others_do_not():
    def blocks(prior) -> list[set[str]]:
        return [set(block.layout.names) for block in BayesianNetwork(net(), likelihoods.Gaussian(0.5), prior).blocks]

    everything = {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert blocks(PRIORS["normal"]) == blocks(PRIORS["fan-in"]) == blocks(PRIORS["scale mixture"]) == [everything]
    assert blocks(PRIORS["interleaved families"]) == [{"0.weight", "2.weight"}, {"0.bias", "2.bias"}]
    assert blocks(PRIORS["mixed families"]) == [{"0.weight", "2.bias"}, {"0.bias"}, {"2.weight"}]


def test_a_correlated_prior_has_its_analytic_divergence():
    covariance = torch.eye(3).double() + 0.5
    prior = {"0.bias": dist.MultivariateNormal(torch.ones(3).double(), covariance), "*": dist.Normal(0.0, 1.0)}
    bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5), prior)
    guide = guides.MeanField(bnn, init_scale=0.3)
    q, p = runs(bnn, guide, torch.randn(3, 2).double(), torch.zeros(3).double())
    first, second = ({name: each[name] for name in ("0.bias",)} for each in (q, p))
    loc = q["0.bias"]["fn"].mean
    exact = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(loc, 0.09 * torch.eye(3).double()),
        torch.distributions.MultivariateNormal(torch.ones(3).double(), covariance),
    )
    torch.testing.assert_close(sum(kl_terms(first, second)), exact)


class TestLogUniform:
    #: Largest errors that the class states, of the value and of its derivative by log α, by range of log α.
    STATED: ClassVar = {
        (-10, -4): (0.0085, 0.0038),
        (-4, -2): (0.0094, 0.0137),
        (-2, 0): (0.0046, 0.0066),
        (0, 2): (0.0054, 0.0033),
        (2, 4): (0.0023, 0.0023),
        (4, 10): (0.0003, 0.0003),
    }
    #: E log|ε| of a standard normal ε.
    FREE = -0.5 * (float(np.euler_gamma) + math.log(2))

    @staticmethod
    def exact(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
        """KL from a Gaussian and its derivative by log α, by the trapezoid rule over v = log |w| at σ = 1."""
        v = torch.linspace(-40, 6, 16_001, dtype=torch.float64)
        step = v[1] - v[0]
        values, slopes = [], []
        for ratio in (-0.5 * log_alpha).exp():
            left, right = (dist.Normal(m, 1.0).log_prob(v.exp()).exp() for m in (-ratio, ratio))
            values.append(((left + right) * v * v.exp()).sum() * step - TestLogUniform.FREE)
            slopes.append(-0.5 * ratio * (right - left).sum() * step)  # d E log|ε + r| / dr is E 1 / (ε + r)
        return torch.stack(values), torch.stack(slopes)

    @pytest.mark.parametrize(("lower", "upper"), STATED)
    @pytest.mark.parametrize("family", [dist.Normal, lambda loc, scale: FlatNormal(loc, scale.log())])
    def test_errors_are_those_stated(self, family, lower, upper):
        log_alpha = torch.linspace(lower, upper, 61, dtype=torch.float64, requires_grad=True)
        loc = torch.linspace(-2, 3, 61, dtype=torch.float64)
        kl = torch.distributions.kl_divergence(family(loc, loc.abs() * (0.5 * log_alpha).exp()), priors.LogUniform())
        (slope,) = torch.autograd.grad(kl.sum(), log_alpha)
        value, derivative = self.exact(log_alpha.detach())
        for error, stated in zip((kl - value, slope - derivative), self.STATED[lower, upper], strict=True):
            assert 0.6 * stated < error.abs().max() <= stated

    def test_the_quadrature_is_right_where_there_is_a_closed_form(self):
        value, derivative = self.exact(torch.tensor([-10.0, 20.0], dtype=torch.float64))
        assert value[0] == pytest.approx(5.0 - 0.5 * math.exp(-10.0) - self.FREE, abs=1e-7)  # log |μ / σ|, almost
        assert value[1] == pytest.approx(0.5 * math.exp(-20.0), rel=1e-3, abs=1e-12)
        assert derivative[0] == pytest.approx(-0.5, abs=1e-4)

    def test_constant(self):
        """The offset that the class states, from the density of the class itself."""
        v = torch.linspace(-40, 6, 16_001, dtype=torch.float64)
        q, step = dist.Normal(0.0, 1.0), v[1] - v[0]
        ratio = q.log_prob(v.exp()) - priors.LogUniform().log_prob(v.exp())
        assert 2 * (q.log_prob(v.exp()).exp() * v.exp() * ratio).sum() * step == pytest.approx(-2.0541, abs=1e-4)

    @pytest.mark.parametrize("family", [dist.Normal, lambda loc, scale: FlatNormal(loc, scale.log())])
    def test_no_signal_costs_nothing(self, family):
        loc, scale = torch.tensor([0.0, 1e-38, 1e-20, -1e-8], requires_grad=True), torch.full((4,), 0.5)
        scale.requires_grad_()
        kl = torch.distributions.kl_divergence(family(loc, scale), priors.LogUniform())
        assert (kl.abs() < 1e-12).all()
        gradients = torch.autograd.grad(kl.sum(), (loc, scale))
        assert all((gradient.abs() < 1e-6).all() for gradient in gradients)

    @pytest.mark.parametrize("log_scale", [-200.0, -100.0, -20.0, 0.0, 20.0])
    def test_finite_in_single_precision(self, log_scale):
        loc = torch.tensor([0.0, 1e-42, -1e-38, 1e-20, -1e-3, 1.0, 1e20], requires_grad=True)
        scales = torch.full_like(loc, log_scale).requires_grad_()
        kl = torch.distributions.kl_divergence(FlatNormal(loc, scales), priors.LogUniform())
        by_loc, by_scale = torch.autograd.grad(kl.sum(), (loc, scales))
        assert all(value.isfinite().all() for value in (kl, by_loc, by_scale))
        assert by_loc[0] == 0
        assert (kl >= 0).all()
        assert (by_scale <= 0).all()

    @pytest.mark.parametrize("by", ["block", "site"])
    @pytest.mark.parametrize(
        "prior", [priors.LogUniform(), {"0.bias": priors.LogUniform((3,)), "*": priors.LogUniform()}]
    )
    def test_guides_find_it(self, prior, by, monkeypatch):
        bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5), prior)
        guide = guides.MeanField(bnn)
        with torch.no_grad():
            guide.log_scale.uniform_(-2.0, 1.0)
        if by == "site":
            monkeypatch.setattr(divergence, "_shared_block", lambda *_: None)
        x, y = torch.randn(3, 2).double(), torch.zeros(3).double()
        first, second = (sum(kl_terms(*runs(bnn, guide, x, y))) for _ in range(2))
        assert torch.equal(first, second)  # nothing is sampled
        torch.testing.assert_close(first, self.by_element(guide))

    def test_pyros_objective_finds_it(self):
        bnn = BayesianNetwork(net(), likelihoods.Gaussian(0.5), priors.LogUniform())
        guide = guides.MeanField(bnn, init_scale=1e-9)  # whose draws do not matter

        def plain(x, y):
            for name, site in bnn.sites.items():
                loc = bnn.initial_values()[name]
                pyro.sample(name, dist.Normal(loc, 1e-9).to_event(len(site.event_shape)))

        x, y = torch.randn(3, 2).double(), torch.zeros(3).double()
        loss = TraceMeanField_ELBO().loss(bnn, plain, x, y)
        data = -bnn.likelihood.distribution(bnn.network(x)).log_prob(y).sum()
        assert loss - data.item() == pytest.approx(self.by_element(guide).item(), rel=1e-5)

    @staticmethod
    def by_element(guide: guides.MeanField) -> Tensor:
        q = dist.Normal(guide.loc, guide.log_scale.exp())
        return torch.distributions.kl_divergence(q, priors.LogUniform(q.batch_shape)).sum()
