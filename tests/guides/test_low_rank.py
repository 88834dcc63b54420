"""`LowRank`: its distribution, its density, what training makes of it, errors."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from conjugate import Conjugate
from pyro.infer import Trace_ELBO
from saving import round_trip, same
from statistical import assert_covariance, assert_mean
from torch import nn

from bnnzoo import BayesianNetwork, fit, likelihoods
from bnnzoo._vectorize import pyro_settings, vectorize
from bnnzoo.guides import LowRank
from bnnzoo.objectives import ELBO

COMPARISONS = 1000


def network(outputs: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs))


def noisy(outputs: int = 1) -> BayesianNetwork:
    """Two blocks and a noise site in front of which there is a transform."""
    prior = {"0.*": dist.Normal(0.0, 1.0), "2.*": dist.Laplace(0.0, 1.0)}
    return BayesianNetwork(network(outputs), likelihoods.Gaussian(dist.HalfNormal(2.0), num_outputs=outputs), prior)


def randomized(guide: LowRank) -> LowRank:
    with torch.no_grad():
        guide.loc.normal_()
        guide.factor.normal_(0.0, 0.5)
        guide.log_scale.uniform_(-2.0, 0.0)
    return guide


def exact(guide: LowRank) -> torch.distributions.MultivariateNormal:
    """The flat vector's distribution, in double precision, from the definition."""
    factor, scale = guide.factor.detach().double(), guide.log_scale.detach().double().exp()
    return torch.distributions.MultivariateNormal(
        guide.loc.detach().double(), factor @ factor.T + scale.square().diag()
    )


def flat(guide: LowRank, values: dict[str, torch.Tensor]) -> torch.Tensor:
    return guide.layout.join({**values, "noise": values["noise"].log()}).detach().double()


def test_draws_have_the_covariance_of_low_rank_plus_diagonal():
    guide = randomized(LowRank(noisy(), rank=2))
    with pyro_settings(guide):
        drawn = vectorize(lambda _: guide())(torch.zeros(20_000))
    drawn = vectorize(lambda values: flat(guide, values))(drawn)
    q = exact(guide)
    assert_mean(drawn, q.mean, COMPARISONS)
    assert_covariance(drawn, q.mean, q.covariance_matrix, COMPARISONS)


@pytest.mark.parametrize("outputs", [1, 2])
def test_log_prob_is_the_density_of_draws_in_the_sites_own_space(outputs):
    guide = randomized(LowRank(noisy(outputs), rank=3))
    trace = poutine.trace(guide).get_trace()
    values = trace.nodes["_RETURN"]["value"]
    # p(noise) = p(log noise) / noise
    expected = exact(guide).log_prob(flat(guide, values)) - values["noise"].log().sum()
    torch.testing.assert_close(guide.log_prob(values).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trace.log_prob_sum().double(), expected, rtol=1e-4, atol=1e-4)


def test_the_noise_sites_density_integrates_to_one():
    """The Jacobian has the right sign: a log normal's integral over the noise scale, weights given."""
    bnn = BayesianNetwork(nn.Linear(1, 1, bias=False), likelihoods.Gaussian(dist.HalfNormal(2.0)))
    guide = randomized(LowRank(bnn, rank=1)).double()
    noise = torch.logspace(-8, 8, 4001, dtype=torch.float64, base=math.e)
    weights = torch.linspace(-12, 12, 401, dtype=torch.float64)
    density = vectorize(
        vectorize(lambda w, s: guide.log_prob({"weight": w.view(1, 1), "noise": s}), in_dims=(None, 0)),
        in_dims=(0, None),
    )(weights, noise).exp()
    total = torch.trapezoid(torch.trapezoid(density, noise), weights)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-3, rtol=0)


def test_starting_point():
    bnn = noisy()
    guide = LowRank(bnn, rank=4, init_scale=0.2)
    assert torch.equal(guide.loc[:6].view(3, 2), bnn.network[0].weight)
    torch.testing.assert_close(guide.log_scale.exp(), torch.full((14,), 0.2 * math.sqrt(0.5)))
    factor = torch.cat([_reset(guide) for _ in range(400)]).double()
    # 0.2² half from the factor, half from the diagonal, in the mean
    assert_mean(factor.square().sum(1), torch.tensor(0.02).double(), COMPARISONS)
    assert_mean(factor, torch.zeros(4).double(), COMPARISONS)


def _reset(guide: LowRank) -> torch.Tensor:
    guide.reset_parameters()
    return guide.factor.detach().clone()


def test_the_default_rank_is_the_root_of_the_size():
    assert LowRank(noisy()).rank == round(14**0.5)
    assert LowRank(BayesianNetwork(nn.Linear(1, 1, bias=False), likelihoods.Gaussian(1.0))).rank == 1


def decaying(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.001 ** (1 / 400))


def trained(model: Conjugate, rank: int, chains: int = 1):
    bnn = model.bnn()
    settings = {"epochs": 400, "batch_size": model.n, "lr": 0.08, "scheduler": decaying, "chains": chains}
    return fit(bnn, LowRank(bnn, rank), model.data, objective=ELBO(8), **settings)


def test_full_rank_finds_the_exact_posterior():
    """On linear regression the bound becomes tight: correlations included, which a factorized Gaussian misses."""
    model = Conjugate(n=30, d=3)
    posterior = trained(model, rank=3, chains=2)
    for chain in range(2):
        own = {name.removeprefix("guide."): value[chain] for name, value in posterior.state()[0].items()}
        guide = LowRank(model.bnn(), 3)
        guide.load_state_dict(own)
        q = exact(guide)
        gap = model.evidence() - model.elbo(q.mean, q.covariance_matrix)
        assert 0 <= gap < 0.01
        best_factorized = model.elbo(model.mean, model.mean_field_scale.square().diag())
        assert gap < 0.2 * (model.evidence() - best_factorized)


def test_the_objectives_expectation_is_the_bound_in_closed_form():
    """Ours, mapped and not, and Pyro's own: mean over many draws against the conjugate model's closed form."""
    model = Conjugate(n=30, d=3)
    bnn = model.bnn()
    guide = randomized(LowRank(bnn, 2))
    q = exact(guide)
    expected = model.elbo(q.mean, q.covariance_matrix)
    for objective, repeats in ((ELBO(5000), 1), (ELBO(), 400), (Trace_ELBO(), 400)):
        with torch.no_grad():
            if repeats == 1:
                draws = torch.stack([-objective(bnn, guide)(*model.data) for _ in range(8)])
            else:
                draws = torch.stack([torch.as_tensor(-objective.loss(bnn, guide, *model.data)) for _ in range(repeats)])
        assert_mean(draws.double(), expected, COMPARISONS)


def test_under_pyros_svi():
    model = Conjugate()
    bnn = model.bnn()
    guide = LowRank(bnn)
    svi = pyro.infer.SVI(bnn, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = guide.factor.detach().clone()
    losses = [svi.step(*model.data) for _ in range(100)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    assert not torch.equal(guide.factor, before)


def test_a_posterior_saves_scores_and_exports_its_densities(tmp_path):
    x, y = torch.randn(20, 2), torch.randn(20)
    bnn = noisy()
    posterior = fit(bnn, LowRank(bnn, rank=2), (x, y), epochs=3, chains=2, lr=0.01)
    loaded = round_trip(posterior, tmp_path)
    same(posterior, loaded, x)
    assert loaded.guide.rank == 2
    draws = posterior.sample(5, auxiliary=True)
    assert set(draws) == set(bnn.sites)
    log_q = posterior.log_q(draws)
    assert log_q.shape == (2, 5)
    assert log_q.isfinite().all()


@pytest.mark.parametrize("rank", [0, -1, 15, 2.0, True, "full"])
def test_rank_must_fit(rank):
    with pytest.raises(ValueError, match="rank must be an integer from 1 to the number of weights, 14, not"):
        LowRank(noisy(), rank)


@pytest.mark.parametrize("init_scale", [0.0, -1.0, math.nan, math.inf])
def test_init_scale_must_be_positive(init_scale):
    with pytest.raises(ValueError, match="init_scale must be positive, not"):
        LowRank(noisy(), init_scale=init_scale)


def test_a_weight_of_the_auxiliary_sites_name_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.latent = nn.Parameter(torch.zeros(2, 1))

        def forward(self, x):
            return x @ self.latent

    with pytest.raises(ValueError, match="a weight 'latent', a name that LowRank needs"):
        LowRank(BayesianNetwork(Net(), likelihoods.Gaussian(1.0)))
