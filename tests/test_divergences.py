"""KL(q || prior): for every prior family, over flat blocks of sites as site by site, against quadrature."""

import pyro.distributions as dist
import pytest
import torch
from statistical import assert_mean
from torch import Tensor, nn

from bnnzoo import BayesianNetwork, guides, likelihoods, objectives, priors
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.objectives import Sites, kl_terms

COMPARISONS = 1000


def runs(bnn, guide, x, y):
    guide_sites = Sites(structured=True)
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
        monkeypatch.setattr(objectives, "_shared_block", lambda *_: None)
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
